//! DNS messages (RFC 1035 section 4): queries, and what a stub resolver needs of their answers.
//!
//! Names are not read as hickory's `Name`: as in nginx, one longer than 255 octets is taken as it comes.

use super::code_text;
use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{
    BinDecodable, BinDecoder, BinEncodable, BinEncoder, DecodeError,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An answer up to its question; the records are read by [`Response::answers`].
#[derive(Debug)]
pub(super) struct Response<'a> {
    bytes: &'a [u8],
    /// Where the answer section begins.
    records_at: usize,
    /// How many records it announces.
    records: u16,
    pub id: u16,
    /// The response code, never FORMERR (which [`Refused::Code`] is for).
    pub code: u16,
    /// TC: the rest is to be had over TCP.
    pub truncated: bool,
    /// The name asked for, in lower case.
    pub name: Vec<u8>,
    /// A, AAAA or SRV.
    pub kind: RecordType,
}

impl<'a> Response<'a> {
    /// Fails on whatever does not say which question it answers.
    pub fn read(bytes: &'a [u8], over_tcp: bool) -> Result<Self, Refused> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(short)?;
        let flags = match bytes {
            [_, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => return Err(SHORT),
        };
        let Metadata { id, truncation, .. } = header.metadata;
        // QR set, a standard query, reserved bits clear.
        if flags & 0xf870 != 0x8000 || (truncation && over_tcp) {
            let transport = if over_tcp { "TCP" } else { "UDP" };
            return Err(Refused::Flags {
                transport,
                id,
                flags,
            });
        }
        let code = flags & 0xf;
        if code == FORMERR || code > REFUSED {
            return Err(Refused::Code { code, id });
        }
        if header.counts.queries != 1 {
            return Err(Refused::Malformed(
                "invalid number of questions in DNS response",
            ));
        }

        let (name, after) = question_name(bytes, decoder.index())?;
        let mut decoder = decoder_at(bytes, after)?;
        let kind = RecordType::from(u16_of(&mut decoder)?);
        let class = u16_of(&mut decoder)?;
        if class != u16::from(DNSClass::IN) {
            return Err(Refused::Class(class));
        }
        if !matches!(kind, RecordType::A | RecordType::AAAA | RecordType::SRV) {
            return Err(Refused::Kind(kind.into()));
        }
        Ok(Self {
            bytes,
            records_at: after + decoder.index(),
            records: header.counts.answers,
            id,
            code,
            truncated: truncation,
            name,
            kind,
        })
    }

    /// The records of the answer section, whatever name they are for.
    pub fn answers(&self) -> Result<Answers, Refused> {
        let mut answers = Answers {
            ips: Vec::new(),
            services: Vec::new(),
            cname: None,
            ttl: u32::MAX,
            unexpected: Vec::new(),
            is_empty: self.records == 0,
        };
        let mut at = self.records_at;
        for _ in 0..self.records {
            at = skip_name(self.bytes, at)?;
            let mut decoder = decoder_at(self.bytes, at)?;
            let kind = RecordType::from(u16_of(&mut decoder)?);
            let class = u16_of(&mut decoder)?;
            let ttl = decoder.read_u32().map_err(short)?.unverified();
            let len = usize::from(u16_of(&mut decoder)?);
            if class != u16::from(DNSClass::IN) {
                return Err(Refused::RecordClass(class));
            }
            // RFC 2181 section 8: with the top bit set it counts as 0.
            let ttl = u32::try_from(ttl.cast_signed()).unwrap_or(0);
            answers.ttl = answers.ttl.min(ttl);

            let data_at = at + decoder.index();
            let data = decoder.read_slice(len).map_err(short)?.unverified();
            at = data_at + len;
            match kind {
                RecordType::SRV if self.kind == RecordType::SRV => {
                    answers.services.push(self.service(data_at, data)?);
                }
                RecordType::A | RecordType::AAAA if self.kind != RecordType::SRV => {
                    answers.ips.push(self.address(kind, data)?);
                }
                RecordType::CNAME => {
                    let name = String::from_utf8(name_at(self.bytes, data_at)?);
                    answers.cname = Some(name.map_err(|_| INVALID_NAME)?);
                }
                // The server adds the CNAME that follows from it.
                _ if u16::from(kind) == DNAME => {}
                _ => answers.unexpected.push(kind.into()),
            }
        }
        Ok(answers)
    }

    /// RFC 2782.
    fn service(&self, data_at: usize, data: &[u8]) -> Result<Service, Refused> {
        let Some(([p0, p1, w0, w1, n0, n1], [_, ..])) = data.split_first_chunk() else {
            return Err(SHORT);
        };
        let target = String::from_utf8(name_at(self.bytes, data_at + 6)?);
        Ok(Service {
            priority: u16::from_be_bytes([*p0, *p1]),
            weight: u16::from_be_bytes([*w0, *w1]).max(1),
            port: u16::from_be_bytes([*n0, *n1]),
            target: target.map_err(|_| INVALID_NAME)?.into(),
        })
    }

    fn address(&self, kind: RecordType, data: &[u8]) -> Result<IpAddr, Refused> {
        let (unexpected, invalid) = match kind {
            RecordType::A => (
                "unexpected A record in DNS response",
                "invalid A record in DNS response",
            ),
            _ => (
                "unexpected AAAA record in DNS response",
                "invalid AAAA record in DNS response",
            ),
        };
        if kind != self.kind {
            return Err(Refused::Malformed(unexpected));
        }
        let ip = match kind {
            RecordType::A => <[u8; 4]>::try_from(data).map(|ip| Ipv4Addr::from(ip).into()),
            _ => <[u8; 16]>::try_from(data).map(|ip| Ipv6Addr::from(ip).into()),
        };
        ip.map_err(|_| Refused::Malformed(invalid))
    }
}

/// What the answer section holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub ips: Vec<IpAddr>,
    /// SRV records, in the answer's order.
    pub services: Vec<Service>,
    /// The target of the last CNAME.
    pub cname: Option<String>,
    /// The least TTL of all records, in seconds.
    pub ttl: u32,
    /// Types of records that do not belong there.
    pub unexpected: Vec<u16>,
    /// No record at all.
    pub is_empty: bool,
}

/// An SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub priority: u16,
    /// At least 1, as in nginx.
    pub weight: u16,
    pub port: u16,
    /// In lower case.
    pub target: std::sync::Arc<str>,
}

/// Why an answer is not used; displays as in nginx's error log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    Malformed(&'static str),
    Flags {
        transport: &'static str,
        id: u16,
        flags: u16,
    },
    /// A response code that says nothing about the name.
    Code {
        code: u16,
        id: u16,
    },
    Class(u16),
    Kind(u16),
    RecordClass(u16),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => f.write_str(text),
            Self::Flags {
                transport,
                id,
                flags,
            } => write!(f, "invalid {transport} DNS response {id} fl:{flags:04X}"),
            Self::Code { code, id } => {
                let text = code_text(i32::from(*code));
                write!(f, "DNS error ({code}: {text}), query id:{id}")
            }
            Self::Class(class) => write!(f, "unknown query class {class} in DNS response"),
            Self::Kind(kind) => write!(f, "unknown query type {kind} in DNS response"),
            Self::RecordClass(class) => write!(f, "unexpected RR class {class} in DNS response"),
        }
    }
}

/// A recursive query for the records of type `kind`; None if `name` is not a sequence of labels.
pub(super) fn query(id: u16, name: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(name.len() + 18);
    let mut encoder = BinEncoder::new(&mut packet);
    let mut metadata = Metadata::new(id, MessageType::Query, OpCode::Query);
    metadata.recursion_desired = true;
    let counts = HeaderCounts {
        queries: 1,
        answers: 0,
        authorities: 0,
        additionals: 0,
    };
    Header { metadata, counts }.emit(&mut encoder).ok()?;
    for label in name.split('.') {
        if label.is_empty() || label.len() > MAX_LABEL {
            return None;
        }
        encoder.emit_character_data(label).ok()?;
    }
    encoder.emit_u8(0).ok()?;
    encoder.emit_u16(kind.into()).ok()?;
    encoder.emit_u16(DNSClass::IN.into()).ok()?;
    Some(packet)
}

/// The name of the question, lower-cased, and what follows it.
fn question_name(bytes: &[u8], start: usize) -> Result<(Vec<u8>, usize), Refused> {
    let mut at = start;
    loop {
        match bytes.get(at) {
            None => return Err(SHORT),
            Some(0) if at == start => {
                return Err(Refused::Malformed(
                    "zero-length domain name in DNS response",
                ));
            }
            Some(0) => return Ok((name_at(bytes, start)?, at + 1)),
            Some(len) if len & POINTER != 0 => {
                return Err(Refused::Malformed(
                    "unexpected compression pointer in DNS response",
                ));
            }
            Some(len) => at += 1 + usize::from(*len),
        }
    }
}

/// Where the name at `at` ends; a pointer ends it.
fn skip_name(bytes: &[u8], start: usize) -> Result<usize, Refused> {
    let mut at = start;
    loop {
        match bytes.get(at) {
            None => return Err(SHORT),
            Some(0) if at == start => return Err(INVALID_NAME),
            Some(0) => return Ok(at + 1),
            Some(len) if len & POINTER != 0 => return Ok(at + 2),
            Some(len) => at += 1 + usize::from(*len),
        }
    }
}

/// The name at `at` with dots between its labels, in lower case; follows pointers.
fn name_at(bytes: &[u8], mut at: usize) -> Result<Vec<u8>, Refused> {
    const OUT: Refused = Refused::Malformed("name is out of DNS response");
    let mut name = Vec::new();
    // Enough for a name of 255 octets, and an end for pointers in a circle.
    for _ in 0..128 {
        let len = *bytes.get(at).ok_or(OUT)?;
        let next = at + 1;
        if len == 0 {
            name.pop();
            return Ok(name);
        }
        match len & POINTER {
            0 => {
                at = next + usize::from(len);
                name.extend(bytes.get(next..at).ok_or(OUT)?.to_ascii_lowercase());
                name.push(b'.');
            }
            POINTER => {
                let low = *bytes.get(next).ok_or(OUT)?;
                at = usize::from(u16::from_be_bytes([len & !POINTER, low]));
            }
            _ => return Err(Refused::Malformed("invalid label type in DNS response")),
        }
    }
    Err(Refused::Malformed(
        "compression pointers loop in DNS response",
    ))
}

fn decoder_at(bytes: &[u8], at: usize) -> Result<BinDecoder<'_>, Refused> {
    bytes.get(at..).map(BinDecoder::new).ok_or(SHORT)
}

fn u16_of(decoder: &mut BinDecoder<'_>) -> Result<u16, Refused> {
    decoder.read_u16().map(|n| n.unverified()).map_err(short)
}

fn short(_: DecodeError) -> Refused {
    SHORT
}

const SHORT: Refused = Refused::Malformed("short DNS response");
const INVALID_NAME: Refused = Refused::Malformed("invalid name in DNS response");
/// RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;
/// The bits that make a label's length a pointer (RFC 1035 section 4.1.4).
const POINTER: u8 = 0xc0;
const FORMERR: u16 = 1;
const REFUSED: u16 = 5;
/// RFC 6672.
const DNAME: u16 = 39;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer to `query` with these flags and records, each written from its owner on.
    fn answer(query: &[u8], flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let mut out = query[..2].to_vec();
        out.extend(flags.to_be_bytes());
        out.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        out.extend(&query[12..]);
        out.extend(records.concat());
        out
    }

    fn record(kind: u8, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0xc0, 12, 0, kind, 0, 1];
        out.extend(ttl.to_be_bytes());
        out.extend([0, data.len() as u8]);
        out.extend(data);
        out
    }

    fn read(packet: &[u8]) -> Result<Answers, String> {
        let read = Response::read(packet, false).and_then(|response| response.answers());
        read.map_err(|e| e.to_string())
    }

    #[test]
    fn a_query_on_the_wire() {
        let packet = query(0x1234, "a.bc", RecordType::AAAA).unwrap();
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x1c\0\x01";
        assert_eq!(packet, expected);
        for name in ["", ".", "a..b", ".a", &"x".repeat(64)] {
            assert_eq!(query(0, name, RecordType::A), None, "{name}");
        }
        // longer than RFC 1035 allows
        let long = vec!["x".repeat(63); 4].join(".");
        assert_eq!(query(0, &long, RecordType::A).unwrap().len(), 12 + 257 + 4);
    }

    #[test]
    fn records_of_an_answer() {
        let asked = query(7, "a.test", RecordType::A).unwrap();
        let packet = answer(
            &asked,
            0x8180,
            &[
                &record(5, 60, b"\x01B\xc0\x0e"),
                &record(39, 90, b"\0"),
                &record(16, 90, b"\0"),
                &record(1, 300, &[127, 0, 0, 1]),
            ],
        );
        let response = Response::read(&packet, false).unwrap();
        assert_eq!((response.id, response.code), (7, 0));
        assert_eq!(response.name, b"a.test");
        let answers = response.answers().unwrap();
        assert_eq!(answers.ips, [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(answers.cname.as_deref(), Some("b.test"));
        assert_eq!((answers.ttl, answers.unexpected), (60, vec![16]));
        let old = answer(&asked, 0x8180, &[&record(1, 1 << 31, &[127, 0, 0, 1])]);
        assert_eq!(read(&old).unwrap().ttl, 0);
    }

    #[test]
    fn refusals_read_as_in_nginx() {
        let asked = query(7, "a.test", RecordType::A).unwrap();
        let one = |flags, record: &[u8]| read(&answer(&asked, flags, &[record])).unwrap_err();
        let good = record(1, 0, &[0; 4]);
        assert_eq!(one(0x0180, &good), "invalid UDP DNS response 7 fl:0180");
        assert_eq!(
            one(0x8181, &good),
            "DNS error (1: Format error), query id:7"
        );
        assert_eq!(
            one(0x8180, &record(1, 0, &[0; 5])),
            "invalid A record in DNS response"
        );
        assert_eq!(
            one(0x8180, &record(28, 0, &[0; 16])),
            "unexpected AAAA record in DNS response"
        );
        assert_eq!(one(0x8180, &good[..10]), "short DNS response");
        // the target of the CNAME points at itself: the record is at 24, its data at 36
        assert_eq!(
            one(0x8180, &record(5, 0, &[0xc0, 36])),
            "compression pointers loop in DNS response"
        );
        assert_eq!(
            one(0x8180, &record(5, 0, &[0xc3, 0xff])),
            "name is out of DNS response"
        );
        assert_eq!(read(&[]).unwrap_err(), "short DNS response");
        let truncated = answer(&asked, 0x8380, &[]);
        assert!(Response::read(&truncated, false).unwrap().truncated);
        assert_eq!(
            Response::read(&truncated, true).unwrap_err().to_string(),
            "invalid TCP DNS response 7 fl:8380"
        );
    }

    #[test]
    fn service_records() {
        let asked = query(7, "_http._tcp.a.test", RecordType::SRV).unwrap();
        let data = b"\0\x01\0\0\x1f\x90\x01B\xc0\x17";
        let packet = answer(
            &asked,
            0x8180,
            &[&record(33, 60, data), &record(1, 60, &[0; 4])],
        );
        let answers = read(&packet).unwrap();
        let service = Service {
            priority: 1,
            weight: 1,
            port: 8080,
            target: "b.a.test".into(),
        };
        assert_eq!(answers.services, [service]);
        assert_eq!(answers.unexpected, [1], "an address is no service");
        let short = answer(&asked, 0x8180, &[&record(33, 60, &data[..6])]);
        assert_eq!(read(&short).unwrap_err(), "short DNS response");
    }

    proptest! {
        #[test]
        fn never_panics(mut packet in proptest::collection::vec(any::<u8>(), 0..80), fix in any::<bool>()) {
            if fix && packet.len() > 6 {
                packet[2..6].copy_from_slice(&[0x81, 0x80, 0, 1]);
            }
            let _ = read(&packet);
        }

        #[test]
        fn a_question_comes_back(id in any::<u16>(), name in "[a-z0-9_-]{1,63}(\\.[a-z0-9-]{1,63}){0,5}") {
            let packet = answer(&query(id, &name, RecordType::A).unwrap(), 0x8180, &[]);
            let response = Response::read(&packet, true).unwrap();
            prop_assert_eq!(response.id, id);
            prop_assert_eq!(&response.name, name.as_bytes());
            prop_assert!(response.answers().unwrap().is_empty);
        }
    }
}
