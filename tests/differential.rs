//! The same configuration and the same bytes to nginx and to Couloir: what comes back, and what reaches the origin,
//! must be the same. The cases are the files of `differential/cases`; their form is told in `differential/README.md`.
//!
//! `COULOIR_BIN=/usr/sbin/nginx` compares nginx with itself, which checks the cases; `NGINX_BIN` names another nginx.
//! With `DIFFERENTIAL_SHOW` set (and `--nocapture`) what the program under test gave is printed, in the cases' form.

#[path = "differential/case.rs"]
mod case;
mod common;
#[path = "differential/http2.rs"]
mod http2;
#[path = "differential/load.rs"]
mod load;
#[path = "differential/observe.rs"]
mod observe;

use std::path::{Path, PathBuf};

use case::{Group, Reason};
use common::nginx::Nginx;
use common::proc::Couloir;
use observe::observe;

/// Makes one test of each file, and one that no file is left out.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                compare(stringify!($name));
            }
        )*

        #[test]
        fn every_file_is_run() {
            let mut found: Vec<String> = std::fs::read_dir(folder())
                .expect("cases")
                .map(|entry| entry.expect("entry").path().file_stem().expect("name").to_string_lossy().into_owned())
                .collect();
            found.sort();
            assert_eq!(found, [$(stringify!($name)),*]);
        }
    };
}

cases![
    access,
    add_header,
    bad_request,
    balancing,
    cache,
    chunked_requests,
    conditional,
    content_handlers,
    early_errors,
    error_page,
    filters,
    http2_variables,
    internal_redirect,
    keepalive,
    limits,
    location,
    logs_client,
    logs_files,
    logs_http2,
    logs_origin,
    logs_proxy_protocol,
    maps,
    media,
    more_files,
    nested_locations,
    origin_http10,
    origin_responses,
    origin_strict,
    origin_variables,
    paths,
    proxy_headers,
    proxy_response,
    proxy_uri,
    range,
    redirect,
    rewrite,
    server_name,
    static_files,
    subrequests,
    try_files,
    tunnel,
    uri,
    variable_names,
    variables,
];

/// The release from which on a case may say that nginx behaves otherwise.
const LEVEL: (u32, u32, u32) = (1, 31, 0);

fn compare(name: &str) {
    let path = folder().join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("case file");
    let groups = case::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut failures = Vec::new();
    let mut pairs = 0;
    for group in &groups {
        pairs += group.exchanges.len();
        compare_group(group, &mut failures);
    }
    assert!(
        failures.is_empty(),
        "{name}: {} of {pairs} exchanges differ\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

fn compare_group(group: &Group, failures: &mut Vec<String>) {
    let nginx = Nginx::require();
    let reference_is_old = Nginx::version() < LEVEL;
    let ours = observe(group, &Couloir::program());
    let theirs = if group.since && reference_is_old {
        // an older nginx does not know the directives: what is expected is written down
        Ok(group
            .exchanges
            .iter()
            .map(|e| match &e.differs {
                Some((_, expected)) => format!("not asked, but not {expected}"),
                None => format!("line {}: what is expected must be written down", e.line),
            })
            .collect())
    } else {
        observe(group, &nginx)
    };
    let (theirs, ours) = match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (theirs, ours) => {
            for failure in [theirs.err(), ours.err()].into_iter().flatten() {
                failures.push(format!("line {}: {failure}", group.line));
            }
            return;
        }
    };
    let show = std::env::var_os("DIFFERENTIAL_SHOW").is_some();
    for ((exchange, theirs), ours) in group.exchanges.iter().zip(theirs).zip(ours) {
        if show {
            println!("### {}: {}\n{ours}", exchange.line, exchange.name);
        }
        let expected = match &exchange.differs {
            Some((reason, expected)) if reference_is_old || *reason == Reason::Purpose => {
                if *expected == theirs {
                    failures.push(format!(
                        "line {}: {}: says that it differs, but this nginx answers the same",
                        exchange.line, exchange.name
                    ));
                }
                expected
            }
            _ => &theirs,
        };
        if *expected != ours {
            failures.push(format!(
                "line {}: {}\n{}",
                exchange.line,
                exchange.name,
                side_by_side(expected, &ours)
            ));
        }
    }
}

/// The lines of both, those that only one side has marked.
fn side_by_side(expected: &str, ours: &str) -> String {
    let expected: Vec<_> = expected.lines().collect();
    let ours: Vec<_> = ours.lines().collect();
    let mut text = String::new();
    let mut rest = ours.as_slice();
    for line in expected {
        match rest.iter().position(|other| *other == line) {
            Some(at) => {
                for extra in &rest[..at] {
                    text += &format!("  couloir: {extra}\n");
                }
                text += &format!("           {line}\n");
                rest = &rest[at + 1..];
            }
            None => text += &format!("  nginx:   {line}\n"),
        }
    }
    for extra in rest {
        text += &format!("  couloir: {extra}\n");
    }
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases")
}
