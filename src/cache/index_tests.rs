//! Tests of the table.

use super::*;

fn key(n: u8) -> Digest {
    Digest::of(&[n])
}

fn enter(i: &Index, n: u8, now: i64) -> Option<Found> {
    i.enter(key(n), now, 10, 1, 100, false)
}

#[test]
fn counts_uses_and_stores() {
    let i = Index::default();
    assert_eq!(i.enter(key(1), 0, 10, 2, 9, false), Some(Found::New));
    i.leave(key(1), 0, false);
    assert_eq!(i.enter(key(1), 0, 10, 3, 9, false), Some(Found::Scarce));
    assert_eq!(i.enter(key(1), 0, 10, 3, 9, true), Some(Found::Scarce));
    assert_eq!(i.enter(key(1), 0, 10, 3, 9, false), Some(Found::Absent));
    let g = i.stored(key(1), 3);
    assert_eq!(i.blocks(), 3);
    let cached = Found::Cached {
        generation: g,
        stale: false,
    };
    assert_eq!(enter(&i, 1, 0), Some(cached));
    assert_eq!(i.touch(key(1), 5), Some(g));
    assert!(i.expire(key(1)));
    assert_eq!(i.touch(key(1), 5), None);
    i.renew(key(1));
    assert!(i.stored(key(1), 2) > g);
    assert_eq!((i.blocks(), i.len()), (2, 1));
    i.lost(key(1), g);
    assert_eq!(i.blocks(), 2, "another one took its place");
    assert!(i.remove(key(1)));
    assert_eq!((i.blocks(), i.len()), (0, 1), "held by requests");
}

#[test]
fn what_came_to_nothing_is_forgotten() {
    let i = Index::default();
    enter(&i, 1, 0);
    enter(&i, 1, 0);
    i.leave(key(1), 0, true);
    assert_eq!(i.len(), 1);
    i.leave(key(1), 0, true);
    assert!(i.is_empty());
}

#[test]
fn errors_are_answered_for_a_while() {
    let i = Index::default();
    enter(&i, 1, 0);
    i.failed(key(1), 502, 7);
    i.leave(key(1), 0, true);
    assert_eq!(enter(&i, 1, 7), Some(Found::Error(502)));
    assert_eq!(enter(&i, 1, 8), Some(Found::New));
}

#[test]
fn one_updates_and_others_wait() {
    let i = Index::default();
    enter(&i, 1, 0);
    assert!(i.begin_update(key(1), 1, Some(0), 50));
    assert!(!i.begin_update(key(1), 2, Some(49), 60));
    assert!(!i.begin_update(key(1), 2, None, 60));
    assert!(i.updating(key(1)).is_some());
    assert!(i.begin_update(key(1), 2, Some(50), 60), "overtaken");
    i.end_update(key(1), 1);
    assert!(i.updating(key(1)).is_some(), "it is the second's now");
    let g = i.stored(key(1), 1);
    let fetch = |seen| i.begin_fetch(key(1), 3, 50, 70, seen);
    assert_eq!(fetch(0), None, "stored meanwhile");
    assert_eq!(fetch(g), Some(false), "of no use, and another fetches");
    i.leave(key(1), 2, true);
    assert!(i.updating(key(1)).is_none());
    assert_eq!(fetch(g), Some(true));
}

#[test]
fn the_one_used_longest_ago_goes_first() {
    let i = Index::default();
    for n in 0..50u8 {
        assert!(i.add(
            Saved {
                key: key(n),
                expire: n.into(),
                blocks: 1,
                uses: 1,
                stale: false
            },
            50
        ));
    }
    assert_eq!(i.enter(key(99), 0, 9, 1, 50, false), None, "full");
    assert!(!i.add(
        Saved {
            key: key(99),
            expire: 0,
            blocks: 1,
            uses: 1,
            stale: false
        },
        50
    ));
    i.touch(key(0), 1000);
    assert_eq!(i.next_expire(), Some(1));
    assert!(i.evict(Some(0)).is_none());
    for n in 1..50u8 {
        let e = i.evict(None).unwrap();
        assert_eq!((e.key, e.exists), (key(n), true), "{n}");
    }
    assert_eq!((i.len(), i.blocks()), (1, 1));
    assert_eq!(i.saved().len(), 1);
    assert_eq!(i.evict(None).map(|e| e.key), Some(key(0)));
    assert!(i.evict(None).is_none());
}

#[test]
fn what_is_held_stays() {
    let i = Index::default();
    enter(&i, 1, 0);
    i.stored(key(1), 1);
    assert!(i.evict(None).is_none());
    i.leave(key(1), 0, true);
    assert!(i.evict(None).is_some());
}
