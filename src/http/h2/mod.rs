//! HTTP/2 (RFC 9113) and HPACK (RFC 7541) as bytes: frames and header blocks, the same for both roles.

pub mod allowance;
pub mod frame;
pub mod hpack;
pub mod origin;

use std::fmt;

/// What a client sends before its first frame (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The window of a connection and of a stream before anything was settled (RFC 9113, section 6.9.2).
pub const DEFAULT_WINDOW: u32 = 65_535;
/// The largest window (RFC 9113, section 6.9.1).
pub const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame that every peer takes, bytes (RFC 9113, section 4.2).
pub const DEFAULT_FRAME: u32 = 1 << 14;
/// The largest frame that a peer can allow, bytes.
pub const MAX_FRAME: u32 = (1 << 24) - 1;

/// An error code (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

#[allow(missing_docs)]
impl Code {
    pub const NO_ERROR: Code = Code(0x0);
    pub const PROTOCOL_ERROR: Code = Code(0x1);
    pub const INTERNAL_ERROR: Code = Code(0x2);
    pub const FLOW_CONTROL_ERROR: Code = Code(0x3);
    pub const SETTINGS_TIMEOUT: Code = Code(0x4);
    pub const STREAM_CLOSED: Code = Code(0x5);
    pub const FRAME_SIZE_ERROR: Code = Code(0x6);
    pub const REFUSED_STREAM: Code = Code(0x7);
    pub const CANCEL: Code = Code(0x8);
    pub const COMPRESSION_ERROR: Code = Code(0x9);
    pub const CONNECT_ERROR: Code = Code(0xa);
    pub const ENHANCE_YOUR_CALM: Code = Code(0xb);
    pub const INADEQUATE_SECURITY: Code = Code(0xc);
    pub const HTTP_1_1_REQUIRED: Code = Code(0xd);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}
