//! Small files: what comes back, and what is noticed.

use super::*;
use crate::spool::lost::LostCause;

#[test]
fn checkpoint_comes_back_and_every_flipped_bit_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout {
        directory: directory.path().to_owned(),
    };
    assert_eq!(layout.load_checkpoint().unwrap(), None);
    let checkpoint = Checkpoint {
        sequence: 77,
        octets: Bytes::from_static(b"what was reported"),
    };
    layout.store_checkpoint(&checkpoint).unwrap();
    assert_eq!(layout.load_checkpoint().unwrap(), Some(checkpoint));
    let whole = fs::read(layout.checkpoint()).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_checkpoint(&flipped), None, "bit {bit}");
    }
    for length in 0..whole.len() {
        assert_eq!(decode_checkpoint(&whole[..length]), None, "length {length}");
    }
}

#[test]
fn every_flipped_bit_of_a_cursor_or_of_what_was_lost_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout {
        directory: directory.path().to_owned(),
    };
    layout.make().unwrap();
    let cursor = Cursor::beginning_at(4_321);
    layout.store_cursor("one", &cursor).unwrap();
    let mut losses = Losses::default();
    losses.add(5, 4_321, LostCause::Evicted);
    layout.store_losses(&losses.encode().unwrap()).unwrap();
    assert_eq!(layout.load_cursors().unwrap().0["one"], cursor);
    assert_eq!(layout.load_losses().unwrap().unwrap().ranges(), losses.ranges());
    for path in [layout.cursor("one"), layout.lost()] {
        let whole = fs::read(path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&flipped), None, "bit {bit}");
        }
        assert!(serde_json::from_slice::<serde_json::Value>(&whole).is_ok());
    }
}

#[test]
fn a_sequence_that_was_never_given_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout {
        directory: directory.path().to_owned(),
    };
    layout.make().unwrap();
    Mark::open(&layout).unwrap().store(100, false).unwrap();
    let mut losses = Losses::default();
    losses.add(5, u64::MAX, LostCause::Evicted);
    layout.store_losses(&losses.encode().unwrap()).unwrap();
    assert!(layout.load_losses().is_err());
    for (taken, is_read) in [(100, true), (u64::MAX, false)] {
        let cursor = Cursor {
            taken,
            ..Cursor::beginning_at(50)
        };
        layout.store_cursor("one", &cursor).unwrap();
        let (cursors, unreadable) = layout.load_cursors().unwrap();
        assert_eq!(
            (cursors.len(), unreadable.len()),
            if is_read { (1, 0) } else { (0, 1) }
        );
    }
}

#[test]
fn mark_comes_back_and_a_torn_one_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout {
        directory: directory.path().to_owned(),
    };
    let mark = Mark::open(&layout).unwrap();
    assert_eq!(Mark::load(&layout).unwrap(), None);
    mark.store(5, true).unwrap();
    mark.store(1 << 40, false).unwrap();
    assert_eq!(Mark::load(&layout).unwrap(), Some((1 << 40, false)));
    let whole = fs::read(layout.mark()).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_mark(&flipped), None, "bit {bit}");
    }
}

#[test]
fn another_format_is_told_by_its_text() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout {
        directory: directory.path().join("spool"),
    };
    assert_eq!(layout.read_format().unwrap(), Format::Absent);
    layout.make().unwrap();
    assert_eq!(layout.read_format().unwrap(), Format::Known);
    fs::write(layout.format(), "flowtilla-spool 0\n").unwrap();
    assert_eq!(
        layout.read_format().unwrap(),
        Format::Unknown("flowtilla-spool 0".into())
    );
}
