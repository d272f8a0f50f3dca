//! `empty_gif`: a transparent pixel.

use crate::config::Result;
use crate::contract::*;
use crate::http::method::Method;
use bytes::Bytes;
use std::sync::Arc;

/// nginx's ngx_http_empty_gif_module.
pub struct EmptyGif;

/// Whether the location answers with the pixel.
#[derive(Clone, Default)]
pub struct EmptyGifConf {
    on: bool,
}

impl Conf for EmptyGifConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for EmptyGif {
    const NAME: &'static str = "http_empty_gif";
    type Conf = EmptyGifConf;
    const DIRECTIVES: &'static [Directive<EmptyGifConf>] = &[Directive::content(Directive::new(
        "empty_gif",
        Place::LOCATION,
        Args::None,
        "`empty_gif;` Answers with a transparent GIF of one pixel.",
        |c, _, _| {
            c.on = true;
            Ok(())
        },
    ))];

    fn attach(conf: &Arc<EmptyGifConf>, on: &mut Hooks) -> Result<()> {
        if conf.on {
            on.content(Pixel);
        }
        Ok(())
    }
}

struct Pixel;

impl Handler for Pixel {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        r.out.status = 200;
        r.out.set_content_type(b"image/gif");
        r.out.content_length = Some(GIF.len() as u64);
        r.out.last_modified = Some(LAST_MODIFIED);
        Next::Respond(Body::Bytes(Bytes::from_static(GIF)))
    }
}

/// nginx's own: Mon, 28 Sep 1970 06:00:00 GMT.
const LAST_MODIFIED: i64 = 23_349_600;

const GIF: &[u8] = b"GIF89a\
    \x01\0\x01\0\x80\x01\0\
    \0\0\0\xff\xff\xff\
    !\xf9\x04\x01\0\0\x01\0\
    ,\0\0\0\0\x01\0\x01\0\0\
    \x02\x02L\x01\0;";
