use super::super::outlier::OutlierConf;
use super::*;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

pub(in super::super) fn spec(port: u16) -> ServerSpec {
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    ServerSpec::new(addr.to_string(), vec![addr.into()])
}

pub(in super::super) fn group(servers: Vec<ServerSpec>) -> (Group, Arc<AtomicU64>) {
    group_by(servers, RoundRobin)
}

pub(in super::super) fn group_by(
    servers: Vec<ServerSpec>,
    balance: impl Balance,
) -> (Group, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(1000));
    let clock = Clock::manual(now.clone());
    let registry = PeerStateStore::new();
    let keepalive = KeepaliveConf::default();
    let group = Group::new("app", servers, balance, keepalive, &registry, clock);
    (group.unwrap(), now)
}

/// Picks of `n` successful requests; port 1 is `a`.
pub(in super::super) fn letters(group: &Group, n: usize) -> String {
    let letter = |_| {
        let mut r = group.start();
        let Some(picked) = group.pick(&mut r) else {
            return '-';
        };
        let letter = letter_of(picked.peer());
        picked.done(AttemptVerdict::Ok, &mut r);
        letter
    };
    (0..n).map(letter).collect()
}

pub(in super::super) fn letter_of(peer: &Peer) -> char {
    match peer.addr {
        PeerAddr::Inet(addr) => char::from(b'a' - 1 + addr.port() as u8),
        PeerAddr::Unix(_) => 'u',
    }
}

fn fail_all(group: &Group) -> String {
    let mut r = group.start();
    let mut tried = String::new();
    while let Some(picked) = group.pick(&mut r) {
        tried.push(letter_of(picked.peer()));
        picked.done(AttemptVerdict::Failed, &mut r);
    }
    tried
}

#[test]
fn a_failed_peer_rests_for_fail_timeout_and_is_forgiven_after_a_success() {
    let (group, now) = group(vec![spec(1), spec(2)]);
    let mut r = group.start();
    assert_eq!(r.tries, 2);
    let picked = group.pick(&mut r).unwrap();
    assert!(picked.done(AttemptVerdict::Failed, &mut r), "disabled");
    assert_eq!(r.tries, 1);
    assert_eq!(letters(&group, 4), "bbbb");

    now.fetch_add(10, Relaxed);
    assert_eq!(letters(&group, 3), "bbb", "not before fail_timeout is over");
    now.fetch_add(1, Relaxed);
    let after: String = letters(&group, 6);
    assert!(after.contains('a'), "{after}");
    assert_eq!(group.peers().next().unwrap().state.fails.load(Relaxed), 0);
}

#[test]
fn a_peer_is_tried_once_in_a_request() {
    let (group, _) = group((1..=70).map(spec).collect());
    let mut r = group.start();
    let mut seen = BTreeSet::new();
    while let Some(picked) = group.pick(&mut r) {
        assert!(seen.insert(picked.peer().name.clone()));
        picked.done(AttemptVerdict::Next, &mut r);
    }
    assert_eq!((seen.len(), r.tries), (70, 0));
}

#[test]
fn no_live_upstreams_until_fail_timeout() {
    let (group, now) = group(vec![spec(1), spec(2)]);
    assert_eq!(fail_all(&group), "ab");
    assert_eq!(letters(&group, 2), "--");
    now.fetch_add(11, Relaxed);
    assert!(!letters(&group, 2).contains('-'));
}

#[test]
fn a_lone_peer_is_never_given_up() {
    let (group, _) = group(vec![spec(1)]);
    for _ in 0..3 {
        let mut r = group.start();
        let picked = group.pick(&mut r).unwrap();
        assert!(!picked.done(AttemptVerdict::Failed, &mut r));
        assert_eq!(r.tries, 0);
    }
}

#[test]
fn backups_serve_when_no_primary_can() {
    let backup = |port| ServerSpec {
        backup: true,
        ..spec(port)
    };
    let (group, now) = group(vec![spec(1), backup(2), backup(3)]);
    assert_eq!(letters(&group, 2), "aa");
    assert_eq!(fail_all(&group), "abc");
    // With a backup a lone primary may fail too.
    now.fetch_add(5, Relaxed);
    assert_eq!(letters(&group, 1), "-");
    now.fetch_add(6, Relaxed);
    assert_eq!(letters(&group, 2), "aa");
}

#[test]
fn max_conns_and_down_keep_a_peer_out() {
    let limited = ServerSpec {
        max_conns: 1,
        ..spec(1)
    };
    let down = ServerSpec {
        down: true,
        ..spec(2)
    };
    let (group, _) = group(vec![limited, down]);
    let mut r = group.start();
    assert_eq!(r.tries, 1);
    let held = group.pick(&mut r).unwrap();
    assert!(group.pick(&mut group.start()).is_none());
    drop(held);
    assert_eq!(letters(&group, 2), "aa");
    let conns = |p: &Peer| p.state.conns.load(Relaxed);
    assert_eq!(group.peers().map(conns).sum::<u32>(), 0);
}

#[test]
fn max_conns_holds_whatever_the_threads_do() {
    let limited = |port| ServerSpec {
        max_conns: 3,
        ..spec(port)
    };
    for hashed in [false, true] {
        let servers = vec![limited(1), limited(2)];
        let (group, _) = if hashed {
            group_by(servers, super::super::random::Random)
        } else {
            group_by(servers, super::super::least_conn::LeastConn)
        };
        let over = |p: &Peer| p.state.conns.load(Relaxed) > 3;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut held = std::collections::VecDeque::new();
                    for _ in 0..2000 {
                        held.extend(group.pick(&mut group.start()));
                        assert!(!group.peers().any(over));
                        if held.len() > 2 {
                            held.pop_front();
                        }
                    }
                });
            }
        });
        let held: u32 = group.peers().map(|p| p.state.conns.load(Relaxed)).sum();
        assert_eq!(held, 0);
    }
}

#[test]
fn max_fails_zero_never_disables() {
    let stubborn = |port| ServerSpec {
        max_fails: 0,
        ..spec(port)
    };
    let (group, _) = group(vec![stubborn(1), stubborn(2)]);
    assert_eq!(fail_all(&group), "ab");
    // A tried peer gains no weight, so `b` is ahead now.
    assert_eq!(letters(&group, 4), "baba");
}

#[test]
fn next_upstream_tries_only_lowers() {
    let (group, _) = group(vec![spec(1), spec(2)]);
    let mut r = group.start();
    r.limit_tries(0);
    r.limit_tries(5);
    assert_eq!(r.tries, 2);
    r.limit_tries(1);
    assert_eq!(r.tries, 1);
}

#[test]
fn failures_survive_a_new_configuration() {
    let registry = PeerStateStore::new();
    let now = Arc::new(AtomicU64::new(1000));
    let build = |servers| {
        let (keepalive, clock) = (KeepaliveConf::default(), Clock::manual(now.clone()));
        Group::new("app", servers, RoundRobin, keepalive, &registry, clock).unwrap()
    };
    let old = build(vec![spec(1), spec(2)]);
    let mut r = old.start();
    old.pick(&mut r)
        .unwrap()
        .done(AttemptVerdict::Failed, &mut r);
    let new = build(vec![spec(1), spec(2), spec(3)]);
    drop(old);
    assert!(!letters(&new, 6).contains('a'));
}

#[test]
fn a_group_needs_a_primary_server() {
    let (keepalive, clock) = (KeepaliveConf::default(), Clock::system());
    let backup = ServerSpec {
        backup: true,
        ..spec(1)
    };
    let registry = PeerStateStore::new();
    let group = Group::new("x", vec![backup], RoundRobin, keepalive, &registry, clock);
    assert_eq!(
        group.unwrap_err().to_string(),
        "no servers in upstream \"x\""
    );
}

#[test]
fn a_draining_server_gets_its_sessions_only() {
    let draining = ServerSpec {
        drain: true,
        route: Some("one".into()),
        ..spec(1)
    };
    let (group, _) = group(vec![draining, spec(2)]);
    assert_eq!(letters(&group, 3), "bbb");
    let mut r = group.start();
    assert_eq!(r.tries, 1);
    r.hint = Some("one".into());
    let picked = group.pick(&mut r).unwrap();
    assert_eq!(letter_of(picked.peer()), 'a');
    drop(picked);
    // it was tried: the session goes elsewhere
    assert_eq!(letter_of(group.pick(&mut r).unwrap().peer()), 'b');
}

#[test]
fn sessions_keep_their_peer_and_others_are_balanced_around_them() {
    let (group, _) = group(vec![spec(1), spec(2), spec(3)]);
    let second = group.peers().nth(1).unwrap().sid.clone();
    let mut others = String::new();
    for _ in 0..6 {
        let mut r = group.start();
        r.hint = Some(second.clone());
        let picked = group.pick(&mut r).unwrap();
        assert_eq!(letter_of(picked.peer()), 'b');
        picked.done(AttemptVerdict::Ok, &mut r);
        others.push_str(&letters(&group, 1));
    }
    assert_eq!(others.matches('b').count(), 0, "{others}");
    assert_eq!(others.matches('a').count(), 3, "{others}");
}

#[test]
fn a_peer_that_came_back_starts_slowly() {
    fastrand::seed(3);
    let slow = ServerSpec {
        slow_start: 10_000,
        ..spec(1)
    };
    let (group, now) = group(vec![slow, spec(2)]);
    let share = |group: &Group| letters(group, 400).matches('a').count();
    assert_eq!(share(&group), 200);
    let state = &group.peers().next().unwrap().state;
    state.came_back(now.load(Relaxed) * 1000);
    assert_eq!(share(&group), 0);
    now.fetch_add(5, Relaxed);
    let half = share(&group);
    // in half of the rounds it has its full share
    assert!((75..125).contains(&half), "{half}");
    now.fetch_add(6, Relaxed);
    assert_eq!(share(&group), 200);
}

#[test]
fn the_only_peer_that_is_left_serves_however_cold_it_is() {
    let slow = ServerSpec {
        slow_start: 10_000,
        ..spec(1)
    };
    let down = ServerSpec {
        down: true,
        ..spec(2)
    };
    let (group, now) = group(vec![slow, down]);
    let state = &group.peers().next().unwrap().state;
    state.came_back(now.load(Relaxed) * 1000);
    assert_eq!(letters(&group, 5), "aaaaa");
}

#[test]
fn errors_in_a_row_take_a_peer_out() {
    let servers = vec![spec(1), spec(2), spec(3)];
    let (keepalive, clock) = (KeepaliveConf::default(), Clock::system());
    let group = Group::new(
        "x",
        servers,
        RoundRobin,
        keepalive,
        &PeerStateStore::new(),
        clock,
    );
    let group = group.unwrap().with(Extras {
        outlier: Some(Detector::new(OutlierConf::default())),
        ..Extras::default()
    });
    for _ in 0..15 {
        let mut r = group.start();
        let mut picked = group.pick(&mut r).unwrap();
        picked.answered(if letter_of(picked.peer()) == 'a' {
            500
        } else {
            200
        });
        picked.done(AttemptVerdict::Ok, &mut r);
    }
    assert!(!letters(&group, 6).contains('a'));
}

#[test]
fn one_request_asks_after_a_failed_peer_in_a_fail_timeout() {
    let (group, now) = group_by(vec![spec(1), spec(2)], super::super::hash::Hash);
    let peer = group.peers().next().unwrap();
    peer.state.fails.store(1, Relaxed);
    peer.state.checked.store(now.load(Relaxed), Relaxed);
    now.fetch_add(11, Relaxed);
    assert!(peer.claim(now.load(Relaxed)));
    assert!(peer.is_failed(now.load(Relaxed)));
    peer.release();
}
