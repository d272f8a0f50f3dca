//! Directives of nginx's modules that are left out on purpose: each is refused with the reason.

use crate::contract::*;
use std::sync::Arc;

/// What is not built in, and why.
pub struct Refused;

const A: Place = Place::ANY_HTTP_IF.or(Place::LIMIT_EXCEPT);
const H: Place = Place::HTTP;
const ANY: Args = Args::Between(0, u8::MAX);

const IMAGES: &str = "images are not changed here: decoders of images do not belong into a process that faces the network";
const XSLT: &str = "XML is not transformed here: XSLT processors do not belong into a process that faces the network";
const PERL: &str = "Perl is not embedded; filters are written in Rust (see examples/)";
const GEOIP: &str =
    "the format of these databases is no longer published; \"geo\" reads ranges of addresses";
const PROFILES: &str = "profiles are taken from outside, with perf";
const MEMORY: &str = "it depends on the allocator of Solaris";

macro_rules! refused {
    ($($name:literal $place:ident $args:ident $why:ident;)+) => {
        &[$(Directive::new($name, $place, $args, concat!("`", $name, " …;` Refused: not built in."), |_, s, _| refuse(s, $why)),)+]
    };
}

impl Module for Refused {
    const NAME: &'static str = "refused";
    type Conf = ();
    const OFFERED: bool = false;
    const DIRECTIVES: &'static [Directive<()>] = refused! {
        "image_filter" A ANY IMAGES;
        "image_filter_jpeg_quality" A ANY IMAGES;
        "image_filter_webp_quality" A ANY IMAGES;
        "image_filter_sharpen" A ANY IMAGES;
        "image_filter_transparency" A ANY IMAGES;
        "image_filter_interlace" A ANY IMAGES;
        "image_filter_buffer" A ANY IMAGES;
        "xml_entities" A ANY XSLT;
        "xml_external_entities" A ANY XSLT;
        "xslt_stylesheet" A ANY XSLT;
        "xslt_param" A ANY XSLT;
        "xslt_string_param" A ANY XSLT;
        "xslt_types" A ANY XSLT;
        "xslt_last_modified" A ANY XSLT;
        "perl" A ANY PERL;
        "perl_modules" H ANY PERL;
        "perl_require" H ANY PERL;
        "perl_set" H ANY PERL;
        "geoip_country" H ANY GEOIP;
        "geoip_city" H ANY GEOIP;
        "geoip_org" H ANY GEOIP;
        "geoip_proxy" H ANY GEOIP;
        "geoip_proxy_recursive" H ANY GEOIP;
        "google_perftools_profiles" MAIN ANY PROFILES;
        "degradation" H ANY MEMORY;
        "degrade" A ANY MEMORY;
    };

    fn attach(_conf: &Arc<()>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

const MAIN: Place = Place::MAIN;

fn refuse(s: &Statement, why: &str) -> ConfResult<()> {
    Err(s.error(format!(
        "the \"{}\" directive is not supported: {why}",
        s.name()
    )))
}
