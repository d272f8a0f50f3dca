//! What every request asks of the configuration: its location, and texts with variables.

mod support;

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use couloir::engine::lookup;
use couloir::features::builtin;
use couloir::prelude::*;
use criterion::{Criterion, criterion_group, criterion_main};

fn location(c: &mut Criterion) {
    let runtime = support::runtime();
    let _inside = runtime.enter();
    let registry = Arc::new(builtin());
    let mut group = c.benchmark_group("location match");
    for count in [10, 1_000, 10_050] {
        let mut request = support::request(support::site(&registry, &support::locations(count)));
        let last = (count - 10) / 10 * 10;
        for (what, uri) in [
            ("exact", format!("/exact/{last}")),
            ("prefix", format!("/app5/{}/page.html", last + 5)),
            ("no regex", format!("/assets/{}/a.css", last + 1)),
            ("none", "/zzz/index.html".to_owned()),
        ] {
            request.uri = uri.into_bytes();
            group.bench_function(format!("{what} of {count}"), |b| {
                b.iter(|| black_box(lookup::location(&mut request)));
            });
        }
    }
    group.finish();
}

static TEMPLATE: Mutex<Option<Template>> = Mutex::new(None);

/// Hands the template that the configuration made to the bench.
struct Probe;

impl Module for Probe {
    const NAME: &'static str = "probe";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] = &[Directive::own(
        "probe",
        Place::HTTP,
        Args::Exactly(1),
        "`probe text;` Keeps a text.",
        probe,
    )];

    fn attach(_: &Arc<()>, _: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

fn probe(_: &mut (), s: &Statement, b: &mut Build) -> ConfResult<()> {
    *TEMPLATE.lock().expect("the template") = Some(b.template(s, 0)?);
    Ok(())
}

fn template(c: &mut Criterion) {
    let runtime = support::runtime();
    let _inside = runtime.enter();
    let mut registry = builtin();
    registry.add::<Probe>();
    registry.arrange().expect("the modules fit together");
    let registry = Arc::new(registry);
    let mut group = c.benchmark_group("template");
    for (what, text) in [
        ("literal", "keep-alive"),
        ("variable", "$uri"),
        ("four variables", "$scheme://$host:$server_port$uri"),
        (
            "log line",
            "$remote_addr - $remote_user \\\"$request\\\" $status $body_bytes_sent \\\"$http_referer\\\" \\\"$http_user_agent\\\"",
        ),
    ] {
        let conf = format!("events {{ }} http {{ probe \"{text}\"; server {{ }} }}");
        let mut request = support::request(support::site(&registry, &conf));
        request.uri = b"/index.html".to_vec();
        let template = TEMPLATE
            .lock()
            .expect("the template")
            .take()
            .expect("the directive was read");
        let mut out = Vec::with_capacity(512);
        group.bench_function(what, |b| {
            b.iter(|| {
                out.clear();
                template.write(&request, &mut out);
                black_box(&out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, location, template);
criterion_main!(benches);
