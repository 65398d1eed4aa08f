//! Rights the check sums of a GUID table, or nearly all inputs would end there.

/// The disk with right ones in its first table.
pub fn mend(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < 2048 || &bytes[512..520] != b"EFI PART" {
        return bytes;
    }
    let number = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let start = number(&bytes, 512 + 72).saturating_mul(512);
    let length = number(&bytes, 512 + 80).saturating_mul(number(&bytes, 512 + 84));
    if let Some(table) = start.checked_add(length).and_then(|end| bytes.get(start..end)) {
        let sum = crc32(table).to_le_bytes();
        bytes[600..604].copy_from_slice(&sum);
    }
    let header = number(&bytes, 512 + 12).min(512);
    bytes[528..532].fill(0);
    let sum = crc32(&bytes[512..512 + header]).to_le_bytes();
    bytes[528..532].copy_from_slice(&sum);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
}
