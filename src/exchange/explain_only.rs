//! The exchange of a request that is only explained: nothing is connected to.

use super::target::Found;
use crate::contract::PassEnd;
use crate::contract::{Body, BodyLength, Pass, Request, Step};

/// Tells what would be sent to whom, and answers 200 in the origin's place.
pub(super) fn answer(
    r: &mut Request,
    pass: &Pass,
    target: &Found,
    request: &[u8],
    body: BodyLength,
) -> PassEnd {
    let group = &target.group;
    let mut pick = group.start();
    let first = group.pick(&mut pick);
    let scheme = r.upstream.scheme;
    r.explain(|| match &first {
        Some(picked) => Step::new(
            "upstream",
            format!(
                "{scheme}://{} would be asked, of \"{}\" with {} servers",
                picked.peer().name,
                group.name,
                group.members().peers().count()
            ),
        )
        .by("_pass"),
        None => Step::new("upstream", format!("no live server in \"{}\"", group.name)).by("_pass"),
    });
    let body = match body {
        BodyLength::None | BodyLength::Known(0) => "without a body".to_owned(),
        BodyLength::Known(n) => format!("with a body of {n} bytes"),
        BodyLength::Chunked => "with a body in chunks".to_owned(),
    };
    let shown = pass.protocol.shown(r, request);
    r.explain(|| {
        let text = String::from_utf8_lossy(&shown);
        Step::new("request", format!("{body}:\n{}", text.trim_end()))
    });
    drop(first);
    r.out.status = 200;
    r.out.content_length = Some(0);
    PassEnd::Respond(Body::Empty)
}
