//! A cache file is read within its bytes, whatever they are; one that is served is as long as it says.
#![no_main]

use couloir::cache::file::{FIXED, MAGIC, read, seal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Vec<u8>)| {
    let (sealed, mut bytes) = input;
    if sealed && bytes.len() > FIXED {
        // past the checksum
        let len = bytes.len() as u32;
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes, 0);
    }
    if let Ok(header) = read(&bytes, bytes.len() as u64) {
        assert_eq!(header.body_start + header.body_len, bytes.len() as u64);
    }
});
