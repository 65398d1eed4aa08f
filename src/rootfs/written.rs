//! What is remembered of a request's files once they are written: enough to know
//! them again on a disk, and not what is in them, which may be a password.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, OrFault, Result};
use crate::types::InjectedFile;

/// The key of an instance's seals, 64 hexadecimal digits: two instances with the
/// same password have nothing in common that tells.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealKey(String);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

impl SealKey {
    /// A new one.
    pub fn random() -> Result<SealKey> {
        let mut bytes = [0; 32];
        openssl::rand::rand_bytes(&mut bytes).or_fault("making a key")?;
        Ok(SealKey(hex::encode(bytes)))
    }

    /// HMAC-SHA-256 of what can be read, in hexadecimal digits.
    pub fn seal(&self, mut content: impl Read) -> io::Result<String> {
        let key = PKey::hmac(self.0.as_bytes())?;
        let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
        io::copy(&mut content, &mut signer)?;
        let sealed: std::result::Result<_, ErrorStack> = signer.sign_to_vec();
        Ok(hex::encode(sealed?))
    }
}

/// A file that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Absolute path inside the instance.
    pub path: String,
    /// Bytes of its content.
    pub size: u64,
    /// The content's seal.
    pub seal: String,
}

impl WrittenFile {
    /// What is remembered of the files of a request.
    pub fn all(files: &[InjectedFile], key: &SealKey) -> Result<Vec<WrittenFile>> {
        let remember = |(index, file): (usize, &InjectedFile)| {
            let content = decode(index, file)?;
            let seal = key.seal(content.as_slice()).or_fault("sealing a file")?;
            Ok(WrittenFile { path: file.path.clone(), size: content.len() as u64, seal })
        };
        files.iter().enumerate().map(remember).collect()
    }

    /// Whether a regular file still has this content and no other.
    pub(super) fn is_in(&self, file: &File, key: &SealKey) -> io::Result<bool> {
        // Of one that grows meanwhile no more is read than was written.
        Ok(file.metadata()?.len() == self.size && key.seal(file.take(self.size))? == self.seal)
    }
}

/// The path of a field of the request's file.
pub(super) fn field(index: usize, name: &str) -> String {
    format!("files[{index}].{name}")
}

/// A file's content.
pub(super) fn decode(index: usize, file: &InjectedFile) -> Result<Vec<u8>> {
    STANDARD
        .decode(&file.content)
        .map_err(|e| Fault::invalid(field(index, "content"), format!("must be base64: {e}")))
}
