//! Origins that are killed, stopped and restarted under load: the client notices nothing.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::common::client::Client;
use super::common::ports::Port;
use super::common::proc::{Couloir, Server, Setup};

/// A process of its own that answers with its port.
fn origin(port: &Port) -> Server {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% master_process off; worker_processes 1; events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             server {{ listen 127.0.0.1:{}; location / {{ return 200 $server_port; }} }} }}",
        port.number()
    ))
    .start(&Couloir::program())
}

fn front(program: &Path, ports: &[Port]) -> Server {
    let servers: String = ports
        .iter()
        .map(|port| format!("server 127.0.0.1:{} fail_timeout=1s; ", port.number()))
        .collect();
    Setup::new(&format!(
        "%%TEST_GLOBALS%% worker_processes 2; events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             upstream u {{ {servers} keepalive 16; }}
             server {{ listen 127.0.0.1:%%PORT_8080%%; keepalive_requests 1000000;
                 location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection '';
                     proxy_connect_timeout 500ms; proxy_read_timeout 500ms; }} }} }}"
    ))
    .start(program)
}

/// What clients saw.
struct Seen {
    requests: usize,
    errors: Vec<String>,
    slowest: Duration,
}

/// Clients that ask without pause until they are told to stop.
fn load(front: &Server, clients: usize, play: impl FnOnce()) -> Seen {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let addr = front.addr(8080);
    let ask = || {
        let mut errors = Vec::new();
        let mut slowest = Duration::ZERO;
        let mut client = Client::connect(addr);
        while !stop.load(Relaxed) {
            let begun = Instant::now();
            let sent = client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            match sent.and_then(|()| client.response("GET")) {
                Ok(response) if response.status == 200 => {}
                Ok(response) => errors.push(response.status.to_string()),
                Err(e) => {
                    errors.push(e.to_string());
                    client = Client::connect(addr);
                }
            }
            slowest = slowest.max(begun.elapsed());
            count.fetch_add(1, Relaxed);
        }
        (errors, slowest)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        play();
        stop.store(true, Relaxed);
        let mut seen = Seen {
            requests: 0,
            errors: Vec::new(),
            slowest: Duration::ZERO,
        };
        for thread in threads {
            let (errors, slowest) = thread.join().expect("a client");
            seen.errors.extend(errors);
            seen.slowest = seen.slowest.max(slowest);
        }
        seen.requests = count.load(Relaxed);
        seen
    })
}

/// One origin is killed, one stopped, one restarted again and again, for `rounds`.
fn play(program: &Path, clients: usize, rounds: usize, pause: Duration) -> Seen {
    let ports: Vec<Port> = (0..4).map(|_| Port::reserve()).collect();
    let mut origins: Vec<Option<Server>> = ports.iter().map(|port| Some(origin(port))).collect();
    let front = front(program, &ports);
    load(&front, clients, || {
        let rest = || std::thread::park_timeout(pause);
        rest();
        kill(&mut origins[0]);
        if let Some(stalled) = &origins[1] {
            stalled.signal(Signal::SIGSTOP);
        }
        for _ in 0..rounds {
            rest();
            kill(&mut origins[2]);
            rest();
            origins[2] = Some(origin(&ports[2]));
        }
        if let Some(stalled) = &origins[1] {
            stalled.signal(Signal::SIGCONT);
        }
        rest();
    })
}

fn kill(origin: &mut Option<Server>) {
    if let Some(mut origin) = origin.take() {
        origin.signal(Signal::SIGKILL);
        origin.wait();
    }
}

#[test]
fn clients_notice_nothing() {
    let seen = play(&Couloir::program(), 4, 2, Duration::from_millis(300));
    assert!(seen.requests > 20, "{}", seen.requests);
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
}

/// `DYING_SECONDS=60 cargo test --release --test upstream dying -- --ignored --nocapture`: the same for longer, and for
/// the nginx that `NGINX_BIN` names.
#[test]
#[ignore = "takes a minute"]
fn for_a_minute() {
    let seconds = std::env::var("DYING_SECONDS").ok();
    let seconds: u64 = seconds.and_then(|text| text.parse().ok()).unwrap_or(60);
    let pause = Duration::from_millis(500);
    let rounds = usize::try_from(seconds).unwrap_or(60);
    let mut programs = vec![Couloir::program()];
    programs.extend(std::env::var_os("NGINX_BIN").map(Into::into));
    for program in programs {
        let seen = play(&program, 20, rounds, pause);
        println!(
            "{}: {} requests, {} errors {:?}, slowest {:?}",
            program.display(),
            seen.requests,
            seen.errors.len(),
            seen.errors.iter().take(3).collect::<Vec<_>>(),
            seen.slowest
        );
    }
}
