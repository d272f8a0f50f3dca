//! MP4 files, and parts of them: a file is refused or cut, and what is sent lies in it.

#![no_main]

use couloir::features::mp4::atoms::Wanted;
use couloir::features::mp4::trim::cut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, u32, bool, &[u8])| {
    let (start, length, key_frame, file) = input;
    let wanted = Wanted {
        start: u64::from(start),
        length: u64::from(length),
        key_frame,
        buffer_size: 4096,
        max_buffer_size: 1 << 20,
    };
    if let Ok(Some(part)) = cut(&file, file.len() as u64, &wanted) {
        assert!(part.start < part.end && part.end <= file.len() as u64);
        assert!(part.head.len() <= 2 * file.len() + 1024);
    }
});
