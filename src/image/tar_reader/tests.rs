//! Tests of the reader on archives that are made here.

use super::*;

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("file").unwrap();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

fn only(bytes: &[u8]) -> Result<Member> {
    let mut reader = TarReader::new(bytes);
    let member = reader.next()?.expect("a member");
    assert!(reader.next()?.is_none());
    Ok(member)
}

#[test]
fn pax_values_may_hold_newlines() {
    let value = b"\x01\n\n=5 a=b\n\xff";
    let member = only(&pax(&[("SCHILY.xattr.security.capability", value)])).unwrap();
    assert_eq!(member.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
}

#[test]
fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
    for (text, expected) in [
        ("1700000000.123456789", (1_700_000_000, 123_456_789)),
        ("5", (5, 0)),
        ("5.5", (5, 500_000_000)),
        ("-1.25", (-2, 750_000_000)),
        ("-3", (-3, 0)),
        ("1.1234567891234", (1, 123_456_789)),
    ] {
        assert_eq!(only(&pax(&[("mtime", text.as_bytes())])).unwrap().mtime, expected);
    }
    assert!(only(&pax(&[("mtime", b"tomorrow")])).is_err());
    assert_eq!(only(&pax(&[])).unwrap().mtime, (7, 0));
}

#[test]
fn a_pax_size_beyond_the_archive_is_a_cut_off_archive() {
    let bytes = pax(&[("size", b"99999999")]);
    let mut reader = TarReader::new(&bytes[..]);
    assert_eq!(reader.next().unwrap().unwrap().size, 99_999_999);
    assert_eq!(reader.next().unwrap_err().kind, FaultKind::ImageCorrupt);
    assert!(only(&pax(&[("size", b"18446744073709551615")])).is_err());
    assert!(only(&pax(&[("size", b"18446744073709551616")])).is_err());
}

#[test]
fn sparse_maps_of_pax_0_1() {
    let mut bytes = pax(&[
        ("GNU.sparse.size", b"1048576"),
        ("GNU.sparse.map", b"4096,3,1048576,0"),
        ("GNU.sparse.name", b"real"),
        ("size", b"3"),
    ]);
    // The content goes between the member's header and the end's two zero blocks.
    let end = bytes.len() - 1024;
    bytes.splice(end..end, *b"abc");
    bytes.splice(end + 3..end + 3, vec![0; 509]);
    let mut reader = TarReader::new(&bytes[..]);
    let member = reader.next().unwrap().unwrap();
    assert_eq!((member.name().as_str(), member.size), ("real", 1_048_576));
    let mut seen = Vec::new();
    reader
        .copy(&member, |offset, data| {
            seen.push((offset, data.to_vec()));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [(4096, b"abc".to_vec())]);
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn lying_sparse_maps_are_refused() {
    for map in ["0,9", "5,3,2,1", "0,3,99999999,0", "0", "a,b", "18446744073709551615,3"] {
        let bytes = pax(&[
            ("GNU.sparse.size", b"1000"),
            ("GNU.sparse.map", map.as_bytes()),
            ("size", b"3"),
        ]);
        assert!(TarReader::new(&bytes[..]).next().is_err(), "{map}");
    }
}

#[test]
fn an_extension_header_is_bounded() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let fault = TarReader::new(&header.as_bytes()[..]).next().unwrap_err();
    assert!(fault.detail.contains("1 MiB"), "{fault}");
}
