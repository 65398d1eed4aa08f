//! Hashes of content, and digests as the OCI specification writes them.

use std::fmt;
use std::io::{self, Read};

use openssl::hash::{Hasher as Engine, MessageDigest};

use crate::fault::{Fault, FaultKind, OrFault, Result};

/// A hash function that images are addressed or declared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The function of that name (`sha256`, `sha384`, `sha512`).
    pub fn named(name: &str) -> Option<Algorithm> {
        match name {
            "sha256" => Some(Algorithm::Sha256),
            "sha384" => Some(Algorithm::Sha384),
            "sha512" => Some(Algorithm::Sha512),
            _ => None,
        }
    }

    /// Its name, as in a digest.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Number of hexadecimal digits of a value.
    pub fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha384 => 96,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A running hash. OpenSSL's, because it is fast in every build profile.
pub struct Hasher {
    algorithm: Algorithm,
    engine: Engine,
}

impl Hasher {
    /// Starts a hash.
    pub fn new(algorithm: Algorithm) -> Result<Hasher> {
        let kind = match algorithm {
            Algorithm::Sha256 => MessageDigest::sha256(),
            Algorithm::Sha384 => MessageDigest::sha384(),
            Algorithm::Sha512 => MessageDigest::sha512(),
        };
        let engine = Engine::new(kind).or_fault("starting a hash")?;
        Ok(Hasher { algorithm, engine })
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        self.engine.update(bytes).or_fault("hashing")
    }

    /// The digest of all bytes taken.
    pub fn finish(mut self) -> Result<Digest> {
        let value = self.engine.finish().or_fault("hashing")?;
        Ok(Digest { algorithm: self.algorithm, hex: hex::encode(value) })
    }
}

/// An algorithm and a value in lower-case hexadecimal, of the right length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// A digest from its two parts; `None` when they do not fit each other.
    pub fn new(algorithm: &str, hex: &str) -> Option<Digest> {
        let algorithm = Algorithm::named(algorithm)?;
        let good = hex.len() == algorithm.digits()
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Digest { algorithm, hex: hex.to_owned() })
    }

    /// Parses `algorithm:hex`. The result is safe as a part of a path.
    pub fn parse(text: &str) -> Result<Digest> {
        text.split_once(':').and_then(|(algorithm, hex)| Digest::new(algorithm, hex)).ok_or_else(
            || {
                Fault::new(
                    FaultKind::ImageUnacceptable,
                    format!("{:?} is no sha256, sha384 or sha512 digest", excerpt(text)),
                )
            },
        )
    }

    /// The digest of what a reader gives.
    pub fn of(algorithm: Algorithm, mut reader: impl Read) -> Result<Digest> {
        let mut hasher = Hasher::new(algorithm)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return hasher.finish(),
                Ok(n) => hasher.update(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).or_fault("reading to hash"),
            }
        }
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The value, lower-case hexadecimal.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// The first part of a text that came from an image, for use in a fault.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_strict() {
        let hex = "a".repeat(64);
        assert_eq!(Digest::parse(&format!("sha256:{hex}")).unwrap().hex(), hex);
        for bad in ["", "sha256", "sha256:", "md5:aa", "sha256:../../../etc", "sha512:aa"] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&format!("sha256:{}", "A".repeat(64))).is_err());
    }

    #[test]
    fn known_value() {
        let digest = Digest::of(Algorithm::Sha256, &b"abc"[..]).unwrap();
        assert!(digest.to_string().starts_with("sha256:ba7816bf8f01cfea"));
    }
}
