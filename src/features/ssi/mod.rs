//! `ssi`: commands in pages, carried out as they pass.

mod filter;
mod parse;
mod text;

use super::media_types::MediaTypes;
use crate::config::Result;
use crate::contract::*;
use crate::http::headers::Known;
use crate::inherit;
use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config};
use jiff::tz::TimeZone;
use std::sync::Arc;

/// nginx's ngx_http_ssi_filter_module.
pub struct Ssi;

/// What a block says.
#[derive(Clone, Default)]
pub struct SsiConf {
    on: Option<bool>,
    silent_errors: Option<bool>,
    types: Option<MediaTypes>,
    value_len: Option<u64>,
    last_modified: Option<bool>,
    // read for their faults alone
    min_file_chunk: Option<u64>,
    ignore_recycled: Option<bool>,
    /// Where a request keeps its page's format of dates.
    time_format: Option<Slot<TimeFormat>>,
}

/// `<!--#config timefmt="…" -->`.
pub(crate) struct TimeFormat(pub Vec<u8>);

impl Conf for SsiConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on, silent_errors, types, value_len, last_modified, min_file_chunk, ignore_recycled, time_format);
    }
}

impl Module for Ssi {
    const NAME: &'static str = "http_ssi_filter";
    type Conf = SsiConf;
    const DIRECTIVES: &'static [Directive<SsiConf>] = &[
        Directive::new(
            "ssi",
            Place::ANY_HTTP_IF,
            Args::Flag,
            "`ssi on|off;` Carries out the commands of server-side includes in responses. Default: off.",
            |c, s, b| {
                if c.time_format.is_none() {
                    c.time_format = Some(match b.shared::<Option<Slot<TimeFormat>>>() {
                        Some(slot) => *slot,
                        None => {
                            let slot = b.slot();
                            *b.shared::<Option<Slot<TimeFormat>>>() = Some(slot);
                            slot
                        }
                    });
                }
                once(&mut c.on, s, s.flag(0)?)
            },
        ),
        Directive::new(
            "ssi_silent_errors",
            Place::ANY_HTTP,
            Args::Flag,
            "`ssi_silent_errors on|off;` Whether a page does not show that a command failed. Default: off.",
            |c, s, _| once(&mut c.silent_errors, s, s.flag(0)?),
        ),
        Directive::new(
            "ssi_ignore_recycled_buffers",
            Place::ANY_HTTP,
            Args::Flag,
            "`ssi_ignore_recycled_buffers on|off;` Read and not used: buffers are not recycled. Default: off.",
            |c, s, _| once(&mut c.ignore_recycled, s, s.flag(0)?),
        ),
        Directive::new(
            "ssi_min_file_chunk",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`ssi_min_file_chunk size;` Read and not used: text between commands is sent from memory. Default: 1k.",
            |c, s, _| once(&mut c.min_file_chunk, s, s.size(0)?),
        ),
        Directive::new(
            "ssi_value_length",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`ssi_value_length length;` The longest value of a parameter. Default: 255.",
            |c, s, _| once(&mut c.value_len, s, s.size(0)?),
        ),
        Directive::new(
            "ssi_types",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`ssi_types type …;` Media types in which commands are carried out besides text/html; `*` is any. Default: text/html.",
            |c, s, b| MediaTypes::read(&mut c.types, "text/html", s, b),
        ),
        Directive::new(
            "ssi_last_modified",
            Place::ANY_HTTP,
            Args::Flag,
            "`ssi_last_modified on|off;` Whether Last-Modified and a weak ETag stay. Default: off.",
            |c, s, _| once(&mut c.last_modified, s, s.flag(0)?),
        ),
    ];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("date_local", |r, _| date(r, TimeZone::system())),
        Variable::new("date_gmt", |r, _| date(r, TimeZone::UTC)),
    ];

    fn attach(conf: &Arc<SsiConf>, on: &mut Hooks) -> Result<()> {
        if conf.on == Some(true) {
            on.keep(conf.clone());
            on.response(Filter(conf.clone()));
        }
        Ok(())
    }
}

struct Filter(Arc<SsiConf>);

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let conf = &self.0;
        if r.out.content_length == Some(0)
            || !MediaTypes::or_defaults(&conf.types, &["text/html"], &r.out)
        {
            return None;
        }
        if !r.subrequest {
            r.out.clear_length();
            if conf.last_modified == Some(true) {
                r.out.weaken_etag();
            } else {
                r.out.clear_last_modified();
                r.out.headers.remove_id(Known::ETag);
            }
        }
        text::Memory::ensure(r);
        let value_len = conf.value_len.unwrap_or(255) as usize;
        Some(Box::new(filter::Page::new(
            value_len,
            conf.silent_errors == Some(true),
            conf.time_format,
        )))
    }
}

/// `$date_local` and `$date_gmt`, in the format of the page.
fn date(r: &Request, zone: TimeZone) -> Val<'static> {
    let format = r.kept::<SsiConf>().and_then(|c| r.slot(c.time_format?));
    let format = format.map_or(&b"%A, %d-%b-%Y %H:%M:%S %Z"[..], |f| &f.0);
    match format_time(Timestamp::now(), zone, format) {
        Some(text) => Val::Owned(text),
        None => Val::None,
    }
}

/// `strftime` as the C library does it; `None` where nothing comes of it.
fn format_time(at: Timestamp, zone: TimeZone, format: &[u8]) -> Option<Vec<u8>> {
    let mut format = String::from_utf8_lossy(format).into_owned();
    if zone == TimeZone::UTC {
        // the C library's name for it
        format = format.replace("%Z", "GMT");
    }
    let time = BrokenDownTime::from(&at.to_zoned(zone));
    let text = time
        .to_string_with_config(&Config::new().lenient(true), format)
        .ok()?;
    (!text.is_empty()).then(|| text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_c_librarys() {
        let at = Timestamp::from_second(1_795_341_600).unwrap_or_default();
        let f = |format: &str| {
            format_time(at, TimeZone::UTC, format.as_bytes())
                .map(|t| String::from_utf8_lossy(&t).into_owned())
        };
        assert_eq!(
            f("%A, %d-%b-%Y %H:%M:%S %Z").as_deref(),
            Some("Sunday, 22-Nov-2026 10:00:00 GMT")
        );
        assert_eq!(f("%s").as_deref(), Some("1795341600"));
        assert_eq!(f("%e %I %p %y %%").as_deref(), Some("22 10 AM 26 %"));
        assert_eq!(f(""), None);
    }
}
