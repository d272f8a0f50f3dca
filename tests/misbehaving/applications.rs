//! FastCGI, SCGI, uwsgi and memcached peers that do not do what they should.

use super::common::client::{Framing, exchange};
use super::common::origin::{Origin, Step};
use super::common::proc::{Couloir, Server, Setup};
use super::{alive, error_logged, get_once, logged};

const STDOUT: u8 = 6;
const STDERR: u8 = 7;
const END: u8 = 3;

/// A record of one request.
fn record(kind: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    padded(kind, content, 0)
}

fn padded(kind: u8, content: impl AsRef<[u8]>, padding: u8) -> Vec<u8> {
    let content = content.as_ref();
    let [high, low] = (content.len() as u16).to_be_bytes();
    let mut out = vec![1, kind, 0, 1, high, low, padding, 0];
    out.extend_from_slice(content);
    out.resize(out.len() + usize::from(padding), b'p');
    out
}

fn end() -> Vec<u8> {
    record(END, [0; 8])
}

/// A whole answer with this head and body.
fn answer(text: &str) -> Vec<u8> {
    [record(STDOUT, text), record(STDOUT, ""), end()].concat()
}

/// A server whose `/` is passed to the peer by `protocol`; a second request finds out whether the connection was kept.
fn server(origin: &Origin, protocol: &str, location: &str) -> Server {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             underscores_in_headers on;
             log_format short '$request_method $uri $status $body_bytes_sent $upstream_status';
             upstream u {{ server %%ORIGIN%% max_fails=0; keepalive 4; }}
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 access_log %%TESTDIR%%/short.log short;
                 location = /alive {{ return 200 alive; }}
                 location / {{
                     set $memcached_key $uri;
                     {protocol}_pass u; {protocol}_read_timeout 1s; {protocol}_next_upstream off;
                     {location}
                 }} }} }}"
    ))
    .set("ORIGIN", origin.addr())
    .start(&Couloir::program())
}

/// One request to a peer that sends `bytes`, then does `last`: the status that takes the answer's place, the line in the
/// log, and a second connection for a second request.
fn fails(protocol: &str, bytes: Vec<u8>, last: Step, status: u16, message: &str) {
    let origin = Origin::script(vec![vec![Step::ReadBytes(8), Step::Send(bytes), last]]);
    let keep = if protocol == "fastcgi" {
        "fastcgi_keep_conn on;"
    } else {
        ""
    };
    let server = server(&origin, protocol, keep);
    // a timeout is waited for once
    for count in 1..=(if status == 504 { 1 } else { 2 }) {
        let response = exchange(server.addr(8080), &get_once("/x"));
        assert_eq!(response.status, status, "{message}");
        assert_eq!(origin.connections(), count, "{message}: kept");
    }
    logged(
        &server,
        &format!("GET /x {status} {} {status}", body_of(&server, status)),
    );
    error_logged(
        &server,
        &[
            "[error]",
            message,
            " while reading response header from upstream, client: 127.0.0.1, server: localhost, request: \"GET /x HTTP/1.1\", upstream: \"",
            &format!("{protocol}://{}\"", origin.addr()),
        ],
    );
    alive(&server);
}

/// Length of the built-in page.
fn body_of(server: &Server, status: u16) -> usize {
    let line = server.wait_for_text("short.log", &format!(" {status} "));
    line.lines()
        .next()
        .and_then(|l| l.split(' ').nth(3))
        .and_then(|n| n.parse().ok())
        .expect("body_bytes_sent")
}

fn fastcgi_fails(bytes: Vec<u8>, message: &str) {
    fails("fastcgi", bytes, Step::WaitForClose, 502, message);
}

#[test]
fn fastcgi_records_of_nonsense() {
    fastcgi_fails(
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        "upstream sent unsupported FastCGI protocol version: 72",
    );
    fastcgi_fails(
        record(11, "x"),
        "upstream sent invalid FastCGI record type: 11",
    );
    let mut other = answer("Status: 200\r\n\r\n");
    other[3] = 2;
    fastcgi_fails(
        other,
        "upstream sent unexpected FastCGI request id low byte: 2",
    );
    fastcgi_fails(end(), "upstream sent unexpected FastCGI record: 3");
}

#[test]
fn fastcgi_heads_of_nonsense() {
    fastcgi_fails(
        answer("Status: two hundred\r\n\r\n"),
        "upstream sent invalid status: \"two hundred\"",
    );
    fastcgi_fails(
        answer("Stat\0us: 200\r\n\r\n"),
        "upstream sent invalid header: ",
    );
    fastcgi_fails(
        record(STDOUT, format!("X: {}", "x".repeat(9000))),
        "upstream sent too big header",
    );
    fastcgi_fails(
        [record(STDOUT, "X: y\r\n"), record(STDOUT, "")].concat(),
        "upstream prematurely closed FastCGI stdout",
    );
}

#[test]
fn fastcgi_applications_that_die_or_hang() {
    fails(
        "fastcgi",
        Vec::new(),
        Step::Reset,
        502,
        "recv() failed (104: Connection reset by peer)",
    );
    fails(
        "fastcgi",
        record(STDOUT, "Status: 200\r\n"),
        Step::Reset,
        502,
        "",
    );
    // a record that promises more than comes
    let mut short = record(STDOUT, "Status: 200\r\nX: ");
    short[5] = 200;
    fails(
        "fastcgi",
        short,
        Step::WaitForClose,
        504,
        "upstream timed out (110: Connection timed out)",
    );
}

#[test]
fn a_fastcgi_answer_that_breaks_off_is_not_whole() {
    let head = "Content-Type: text/plain\r\n\r\npart";
    for bytes in [
        // at the end of a record, within one, with less than Content-Length says
        record(STDOUT, head),
        {
            let mut r = record(STDOUT, head);
            r[5] = 250;
            r
        },
        answer("Content-Length: 40\r\n\r\npart"),
    ] {
        let origin = Origin::script(vec![vec![
            // the whole request: head 16, parameters 8 + 20 + 4 of padding + 8, end of the body 8
            Step::ReadBytes(64),
            Step::Send(bytes),
            Step::Close,
        ]]);
        let server = server(&origin, "fastcgi", "");
        let mut client = super::common::client::Client::connect(server.addr(8080));
        client
            .send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        // the end of the body never comes
        assert!(client.response("GET").is_err());
        error_logged(&server, &["[error]", "while reading upstream"]);
        alive(&server);
    }
}

#[test]
fn padding_and_split_records_change_nothing() {
    let text = "Content-Type: text/plain\r\nX-Split: yes\r\n\r\nbody";
    let mut bytes: Vec<u8> = text
        .as_bytes()
        .chunks(5)
        .flat_map(|piece| padded(STDOUT, piece, 255))
        .collect();
    bytes.extend(padded(STDERR, "", 7));
    bytes.extend(padded(STDOUT, "", 200));
    bytes.extend(padded(END, [0; 8], 100));
    // head 16, parameters 8 + 42 + 6 of padding + 8, end of the body 8
    let request = Step::ReadBytes(88);
    let script = vec![
        request.clone(),
        Step::Send(bytes),
        request,
        Step::Send(answer("X: y\r\n\r\nsecond")),
        Step::WaitForClose,
    ];
    let origin = Origin::script(vec![script]);
    let server = server(&origin, "fastcgi", "fastcgi_keep_conn on;");
    let first = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!((first.status, first.text().as_str()), (200, "body"));
    assert_eq!(first.header("X-Split"), Some("yes"));
    assert!(first.header("Date").is_some() && first.header("Server").is_some());
    let second = exchange(server.addr(8080), &get_once("/y"));
    assert_eq!((second.status, second.text().as_str()), (200, "second"));
    assert_eq!(origin.connections(), 1);
}

#[test]
fn bytes_behind_the_end_of_a_request_close_the_connection() {
    let mut bytes = answer("X: y\r\n\r\nbody");
    bytes.extend(answer("X: smuggled\r\n\r\nother"));
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::Send(bytes),
        Step::WaitForClose,
    ]]);
    let server = server(&origin, "fastcgi", "fastcgi_keep_conn on;");
    for count in 1..=2 {
        let response = exchange(server.addr(8080), &get_once("/x"));
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
        assert_eq!(origin.connections(), count);
    }
}

#[test]
fn more_than_content_length_is_cut_off() {
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::Send(answer("Content-Length: 4\r\n\r\nbody and more")),
        Step::WaitForClose,
    ]]);
    let server = server(&origin, "fastcgi", "fastcgi_keep_conn on;");
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!(response.framing, Framing::Length);
    assert_eq!(response.text(), "body");
    error_logged(
        &server,
        &[
            "[warn]",
            "upstream sent more data than specified in \"Content-Length\" header",
        ],
    );
}

#[test]
fn a_flood_of_errors_is_logged_and_not_kept() {
    let mut bytes: Vec<u8> = (0..200)
        .flat_map(|i| record(STDERR, format!("PHP Warning {i}: {}\n", "w".repeat(1000))))
        .collect();
    bytes.extend(answer("X: y\r\n\r\nbody"));
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::Send(bytes),
        Step::WaitForClose,
    ]]);
    let server = server(&origin, "fastcgi", "");
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!((response.status, response.text().as_str()), (200, "body"));
    error_logged(&server, &["FastCGI sent in stderr: \"PHP Warning 0: www"]);
    error_logged(&server, &["PHP Warning 199: www"]);
}

#[test]
fn caught_error_output_makes_an_answer_invalid() {
    let bytes = [
        record(STDERR, "PHP Fatal error: no\n"),
        answer("X: y\r\n\r\nbody"),
    ]
    .concat();
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::Send(bytes),
        Step::WaitForClose,
    ]]);
    let server = server(
        &origin,
        "fastcgi",
        "fastcgi_catch_stderr 'PHP Warning'; fastcgi_catch_stderr 'PHP Fatal';",
    );
    assert_eq!(exchange(server.addr(8080), &get_once("/x")).status, 502);
    error_logged(
        &server,
        &["FastCGI sent in stderr: \"PHP Fatal error: no\" while reading response header"],
    );
}

#[test]
fn scgi_and_uwsgi_answers_of_nonsense() {
    for protocol in ["scgi", "uwsgi"] {
        let bad = |text: &str, message: &str| {
            fails(
                protocol,
                text.as_bytes().to_vec(),
                Step::WaitForClose,
                502,
                message,
            )
        };
        bad("Status: -1\r\n\r\n", "upstream sent invalid status: \"-1\"");
        bad("a b: c\r\n\r\n", "upstream sent invalid header: ");
        bad(
            &format!("X: {}", "x".repeat(9000)),
            "upstream sent too big header",
        );
        bad(
            "Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "upstream sent duplicate header line",
        );
        fails(
            protocol,
            b"Status: 200\r\n".to_vec(),
            Step::WaitForClose,
            504,
            "upstream timed out (110: Connection timed out)",
        );
    }
}

#[test]
fn memcached_answers_of_nonsense() {
    let bad = |text: &str, message: &str| {
        fails(
            "memcached",
            text.as_bytes().to_vec(),
            Step::WaitForClose,
            502,
            message,
        )
    };
    bad("ERROR\r\n", "memcached sent invalid response: \"ERROR\"");
    bad(
        "SERVER_ERROR out of memory\r\n",
        "memcached sent invalid response: \"SERVER_ERROR out of memory\"",
    );
    bad(
        "VALUE /y 0 1\r\nx\r\nEND\r\n",
        "memcached sent invalid key in response \"VALUE /y 0 1\" for key \"/x\"",
    );
    bad(
        "VALUE /x 0 many\r\n",
        "memcached sent invalid length in response",
    );
}

#[test]
fn a_wrong_end_of_a_value_closes_the_connection() {
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::send("VALUE /x 0 4\r\nbodyand more\r\nEND\r\n"),
        Step::WaitForClose,
    ]]);
    let server = server(&origin, "memcached", "");
    for count in 1..=2 {
        let response = exchange(server.addr(8080), &get_once("/x"));
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
        assert_eq!(origin.connections(), count);
    }
    error_logged(&server, &["[error]", "memcached sent invalid trailer"]);
}

#[test]
fn memcached_is_only_read_and_kept() {
    let round = |text: &str| [Step::ReadBytes(8), Step::send(text)];
    let script: Vec<Step> = round("END\r\n")
        .into_iter()
        .chain(round("VALUE /x 2 3\r\nabc\r\nEND\r\n"))
        .chain([Step::WaitForClose])
        .collect();
    let origin = Origin::script(vec![script]);
    let server = server(&origin, "memcached", "memcached_gzip_flag 2;");
    let missing = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!(missing.status, 404);
    let found = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!((found.status, found.text().as_str()), (200, "abc"));
    assert_eq!(found.header("Content-Encoding"), Some("gzip"));
    assert_eq!(origin.connections(), 1);
    let post = exchange(
        server.addr(8080),
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(post.status, 405);
}

/// A body that is shorter than its length, and the end of the request, in one read with the head or behind it: what has
/// come reaches the client, and the response does not look whole.
#[test]
fn a_short_body_and_the_end_of_the_request_in_one_read() {
    let text = |body: &str| format!("Content-Length: 10\r\n\r\n{body}");
    let closed = [record(STDOUT, text("abc")), record(STDOUT, ""), end()].concat();
    let ended = [record(STDOUT, text("abc")), end()].concat();
    let split = [record(STDOUT, text("ab")), record(STDOUT, "c"), end()].concat();
    for (bytes, message) in [
        (closed, "upstream prematurely closed FastCGI stdout"),
        (ended, "upstream prematurely closed FastCGI request"),
        (split, "upstream prematurely closed FastCGI request"),
    ] {
        for conf in ["", "fastcgi_buffering off;", "fastcgi_keep_conn on;"] {
            let script = vec![
                Step::ReadBytes(8),
                Step::Send(bytes.clone()),
                Step::WaitForClose,
            ];
            let origin = Origin::script(vec![script]);
            let server = server(&origin, "fastcgi", conf);
            let mut client = super::common::client::Client::connect(server.addr(8080));
            client.send(super::get("/x")).unwrap();
            client.response("GET").unwrap_err();
            assert_eq!(client.partial().expect("a head").status, 200, "{conf}");
            assert_eq!(client.buffered(), b"abc", "{conf} {message}");
            error_logged(&server, &["[error]", message, "while reading upstream"]);
            alive(&server);
        }
    }
}

/// What an application writes to its error output is no failure of a good answer.
#[test]
fn error_output_of_a_good_answer() {
    let bytes = [
        record(STDERR, "careful"),
        answer("Content-Length: 2\r\n\r\nok"),
    ]
    .concat();
    let origin = Origin::script(vec![vec![
        Step::ReadBytes(8),
        Step::Send(bytes),
        Step::WaitForClose,
    ]]);
    let server = server(&origin, "fastcgi", "");
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    error_logged(&server, &["FastCGI sent in stderr: \"careful\""]);
    assert!(
        !server.log().contains("upstream_failure"),
        "{}",
        server.log()
    );
}
