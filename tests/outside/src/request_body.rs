//! A filter of request bodies: `mask_digits on;` replaces digits by `#` on their way to the origin.

use std::sync::Arc;

use couloir::prelude::*;

pub struct MaskDigits;

#[derive(Clone, Default)]
pub struct MaskConf {
    on: Option<bool>,
}

impl Conf for MaskConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on);
    }
}

impl Module for MaskDigits {
    const NAME: &'static str = "mask_digits";
    type Conf = MaskConf;
    const DIRECTIVES: &'static [Directive<MaskConf>] = &[Directive::own(
        "mask_digits",
        Place::ANY_HTTP,
        Args::Flag,
        "`mask_digits on|off;` Replaces digits in the bodies of requests by `#`; a body with a NUL is refused. Default: off.",
        |c, s, _| once(&mut c.on, s, s.flag(0)?),
    )];

    fn attach(conf: &Arc<MaskConf>, on: &mut Hooks) -> ConfResult<()> {
        if conf.on == Some(true) {
            on.on(Phase::PreContent, Begin);
        }
        Ok(())
    }
}

struct Begin;

impl Handler for Begin {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        match r.filter_body(Box::new(Mask)) {
            Ok(()) => Next::Continue,
            Err(status) => Next::Status(status),
        }
    }
}

struct Mask;

impl RequestBodyFilter for Mask {
    fn chunk(&mut self, data: &[u8], _: bool, out: &mut Vec<u8>) -> Result<(), u16> {
        if data.contains(&0) {
            return Err(400);
        }
        out.extend(
            data.iter()
                .map(|b| if b.is_ascii_digit() { b'#' } else { *b }),
        );
        Ok(())
    }

    fn keeps_length(&self) -> bool {
        true
    }
}
