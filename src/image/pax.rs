//! The records of pax headers: what a tar header is too small for.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::acl::AccessList;
use super::refusal::malformed_tar as malformed;
use crate::fault::Result;

/// bsdtar pads nothing.
const LIBARCHIVE: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The records of a pax header, in order.
#[derive(Default)]
pub(super) struct Pax(Vec<(Vec<u8>, Vec<u8>)>);

impl Pax {
    /// Parses records `LENGTH KEY=VALUE\n`, by their lengths: a value may hold any byte.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Pax> {
        let bad = || malformed("a pax header is not made of records");
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|b| *b == b' ').ok_or_else(bad)?;
            let length = decimal(&bytes[..space]).ok_or_else(bad)?;
            let length = usize::try_from(length).map_err(|_| bad())?;
            let record = bytes.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = &bytes[length..];
        }
        Ok(Pax(records))
    }

    /// The last value of a key; an empty one deletes it, as POSIX says.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(name, _)| name == key.as_bytes());
        found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|value| decimal(value).ok_or_else(|| malformed(format!("pax {key} is no number"))))
            .transpose()
    }

    /// A time as `[-]SECONDS[.FRACTION]`.
    pub(super) fn time(&self, key: &str) -> Result<Option<(i64, u32)>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bad = || malformed(format!("pax {key} is no time"));
        let (negative, value) = match value.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, value),
        };
        let mut parts = value.splitn(2, |byte| *byte == b'.');
        let seconds = parts.next().and_then(decimal).ok_or_else(bad)?;
        let seconds = i64::try_from(seconds).map_err(|_| bad())?;
        let mut nanoseconds = 0;
        let fraction = parts.next().unwrap_or_default();
        for place in 0..9 {
            let digit = fraction.get(place).copied().unwrap_or(b'0');
            nanoseconds = nanoseconds * 10 + char::from(digit).to_digit(10).ok_or_else(bad)?;
        }
        Ok(Some(match (negative, nanoseconds) {
            (false, nanoseconds) => (seconds, nanoseconds),
            (true, 0) => (-seconds, 0),
            // The kernel counts nanoseconds upwards from the second below.
            (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
        }))
    }

    /// Extended attributes, as GNU tar, star and Docker write them, and, where they do
    /// not, as bsdtar does.
    pub(super) fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in &self.0 {
            let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
            xattrs.retain(|(other, _)| other != name);
            xattrs.push((name.to_vec(), value.clone()));
        }
        for (key, value) in &self.0 {
            let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") else { continue };
            let bad =
                || malformed("a pax header has an extended attribute that is not as bsdtar's");
            let name = percent_decoded(name).ok_or_else(bad)?;
            if !xattrs.iter().any(|(other, _)| *other == name) {
                xattrs.push((name, LIBARCHIVE.decode(value).map_err(|_| bad())?));
            }
        }
        Ok(xattrs)
    }

    /// The access list of a key.
    pub(super) fn access_list(&self, key: &str) -> Result<Option<AccessList>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let list = AccessList::from_text(text);
        list.map(Some).ok_or_else(|| malformed(format!("pax {key} is no access list")))
    }

    /// The map of pax formats 0.0 (a record for each number) and 0.1 (one list).
    pub(super) fn sparse_map(&self) -> Result<Option<Vec<(u64, u64)>>> {
        let bad = || malformed("a sparse map holds something that is no number");
        let numbers: Vec<u64> = if let Some(map) = self.get("GNU.sparse.map") {
            map.split(|b| *b == b',').map(|n| decimal(n).ok_or_else(bad)).collect::<Result<_>>()?
        } else {
            self.0
                .iter()
                .filter(|(k, _)| k == b"GNU.sparse.offset" || k == b"GNU.sparse.numbytes")
                .map(|(_, value)| decimal(value).ok_or_else(bad))
                .collect::<Result<_>>()?
        };
        let declared = numbers.is_empty() && self.get("GNU.sparse.numblocks") == Some(b"0");
        if numbers.is_empty() && !declared {
            return Ok(None);
        }
        if !numbers.len().is_multiple_of(2) {
            return Err(bad());
        }
        Ok(Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
    }
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A text in which bytes may be written as `%` and two hexadecimal digits.
fn percent_decoded(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        if *first == b'%' {
            bytes.extend(hex::decode(rest.get(..2)?).ok()?);
            text = &rest[2..];
        } else {
            bytes.push(*first);
            text = rest;
        }
    }
    Some(bytes)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds with a fraction. The kernel counts nanoseconds upwards from the
/// second below, the format downwards from zero.
pub(super) fn time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_pax_is_refused() {
        for bad in [&b"99 a=b\n"[..], b"x a=b\n", b"6 a=bc", b"4 ab\n", b"0 a=b\n", b"\n", b"1 "] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn attributes_of_bsdtar_count_where_no_others_do() {
        let records = [
            record(b"LIBARCHIVE.xattr.user.a%3Db", b"aGk"),
            record(b"LIBARCHIVE.xattr.user.c", b"aGk="),
            record(b"SCHILY.xattr.user.c", b"exact"),
        ];
        let mut found = Pax::parse(&records.concat()).unwrap().xattrs().unwrap();
        found.sort();
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_eq!(found, [pair("user.a=b", "hi"), pair("user.c", "exact")]);
        for (name, value) in [(&b"user.%3"[..], &b"aGk"[..]), (b"user.x", b"?")] {
            let record = record(&[b"LIBARCHIVE.xattr.", name].concat(), value);
            assert!(Pax::parse(&record).unwrap().xattrs().is_err());
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [1, 80, 92, 93, 94, 95, 990, 9990] {
            let record = record(b"key", &vec![b'x'; length]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap(), record.len().to_string());
        }
    }
}
