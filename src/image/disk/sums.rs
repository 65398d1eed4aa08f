//! Check sums of disk formats that are not read by a library.

/// CRC-32C without the final inversion, as the kernel chains it.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut value, mut bit) = (index as u32, 0);
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(seed, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

/// CRC-32 from the highest bit on and without the final inversion, as the
/// first kind of a journal's check sums chains it.
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut value, mut bit) = ((index as u32) << 24, 0);
            while bit < 8 {
                value = if value >> 31 != 0 { value << 1 ^ 0x04c1_1db7 } else { value << 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(seed, |sum, byte| TABLE[usize::from((sum >> 24) as u8 ^ byte)] ^ sum << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sums_are_the_kernels() {
        // The check value of CRC-32C, which has a final inversion.
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(7, b"1234"), b"56789"), crc32c(7, b"123456789"));
        // That of CRC-32/BZIP2, which has one too.
        assert_eq!(!crc32_be(u32::MAX, b"123456789"), 0xfc89_1918);
    }
}
