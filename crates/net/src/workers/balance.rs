//! Which thread serves which connection.
//!
//! A request that finds its thread awake wakes nobody. One thread that serves all is awake more often than two that
//! share the same work, so below full load each request costs a third less and waits less than on two. Work is
//! therefore gathered on the first threads, and spread over more of them when these are busy: new connections where
//! there is room, and those that have just been answered a few at a time, since what they will ask next is not known.
//! The two limits are far enough apart that what was spread is not gathered again at once.
//!
//! Here are the decisions. Who carries them out, and when, is in `workers`.

/// The share of its time from which on a thread gives work away.
const BUSY: f64 = 0.75;
/// The share of their time for which threads may have work when they take over that of the next one.
const CALM: f64 = 0.5;
/// By how much busier than another a thread is that gives it work.
const WORTH: f64 = 0.2;
/// New connections that a thread is given before it can be known what they do.
const BURST: usize = 32;

/// What is known of a thread.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Load {
    /// The share of its time in which it had work, lately.
    pub(super) busy: f64,
    /// Its connections that can be given to another.
    pub(super) movable: usize,
    /// And those that cannot.
    pub(super) settled: usize,
    /// New ones since `busy` was last known.
    pub(super) fresh: usize,
}

/// Connections that are to be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) count: usize,
    pub(super) to: usize,
}

/// The thread for a new connection that can be moved later.
pub(super) fn place(loads: &[Load]) -> usize {
    let has_room = |load: &Load| load.busy < BUSY && load.fresh < BURST;
    let fewest = || least(loads, |load| (load.fresh + load.connections()) as f64);
    loads.iter().position(has_room).unwrap_or_else(fewest)
}

/// The thread for a connection that cannot be moved later.
pub(super) fn settle(loads: &[Load]) -> usize {
    least(loads, |load| load.settled as f64)
}

/// What thread `own` is to give away.
pub(super) fn plan(loads: &[Load], own: usize) -> Option<Move> {
    let Load { busy, movable, .. } = loads[own];
    let all: f64 = loads.iter().map(|load| load.busy).sum();
    // So many of the threads before it could do everything without it.
    let spare = |own: usize| own > 0 && all < CALM * own as f64;
    if movable == 0 {
        return None;
    }
    if spare(own) {
        let to = least(&loads[..own], |load| load.busy);
        return Some(Move { count: movable.div_ceil(4), to });
    }
    let used = (0..loads.len()).take_while(|other| !spare(*other)).count();
    // Of those that have more to do than they can, the one with the fewest connections.
    let rank = |load: &Load| if load.busy < BUSY { load.busy } else { 1.0 + load.connections() as f64 };
    let to = least(&loads[..used], rank);
    let excess = match loads[to].busy < BUSY {
        true => busy - loads[to].busy,
        // How busy both are does not say by how much it is too much.
        false => 1.0 - loads[to].connections() as f64 / loads[own].connections() as f64,
    };
    if busy < BUSY || excess < WORTH {
        return None;
    }
    // Half of what would make them equal: some connections ask more than others.
    let count = (movable as f64 * excess / busy / 4.0) as usize;
    Some(Move { count: count.max(1), to })
}

// === impl Load ===

impl Load {
    fn connections(&self) -> usize {
        self.movable + self.settled
    }
}

/// The first of those that have the least.
fn least(loads: &[Load], what: impl Fn(&Load) -> f64) -> usize {
    let indexed = loads.iter().map(what).enumerate();
    indexed.min_by(|(_, one), (_, other)| one.total_cmp(other)).map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(shares: &[f64]) -> Vec<Load> {
        shares.iter().map(|busy| Load { busy: *busy, movable: 100, ..Load::default() }).collect()
    }

    /// Threads whose connections each need the same share of a thread. What they have after many windows, and how many
    /// connections were moved in the last half of them.
    fn settled(mut movable: Vec<usize>, each: f64) -> (Vec<usize>, usize) {
        let mut late = 0;
        for window in 0..200 {
            let loads: Vec<_> = movable
                .iter()
                .map(|count| Load { busy: (*count as f64 * each).min(1.0), movable: *count, ..Load::default() })
                .collect();
            for own in 0..loads.len() {
                if let Some(Move { count, to }) = plan(&loads, own) {
                    assert!(count <= movable[own] && to != own, "{loads:?}");
                    movable[own] -= count;
                    movable[to] += count;
                    late += if window < 100 { 0 } else { count };
                }
            }
        }
        (movable, late)
    }

    #[test]
    fn what_one_thread_can_do_is_done_by_one() {
        assert_eq!(settled(vec![25, 25], 0.009), (vec![50, 0], 0));
        assert_eq!(settled(vec![50, 0], 0.014), (vec![50, 0], 0), "not spread before it is busy");
        assert_eq!(settled(vec![10, 30, 7, 3], 0.002), (vec![50, 0, 0, 0], 0));
        assert_eq!(settled(vec![25, 25], 0.014), (vec![25, 25], 0), "not gathered before it would leave room");
    }

    #[test]
    fn what_one_cannot_do_is_spread_and_stays_so() {
        for (before, each) in [(vec![50, 0], 0.025), (vec![500, 0], 0.0016), (vec![0, 0, 0, 64], 0.025)] {
            let (after, late) = settled(before.clone(), each);
            assert_eq!(after.iter().sum::<usize>(), before.iter().sum());
            assert!(after.iter().all(|count| (*count as f64 * each) < BUSY), "{before:?} became {after:?}");
            assert_eq!(late, 0, "{before:?} became {after:?}");
        }
    }

    #[test]
    fn more_than_all_can_do_is_shared_evenly() {
        let (after, late) = settled(vec![200, 0], 0.02);
        assert!(after.iter().all(|count| (60..=140).contains(count)), "{after:?}");
        assert_eq!(late, 0);
    }

    #[test]
    fn a_third_thread_helps_when_two_are_not_enough() {
        assert_eq!(plan(&busy(&[0.8, 0.1, 0.0]), 0).map(|moved| moved.to), Some(1), "the second has room");
        assert_eq!(plan(&busy(&[0.9, 0.8, 0.0]), 0).map(|moved| moved.to), Some(2));
    }

    #[test]
    fn connections_that_cannot_be_moved_stay() {
        let mut loads = busy(&[0.1, 0.1]);
        loads[1].movable = 0;
        assert_eq!(plan(&loads, 1), None);
    }

    #[test]
    fn new_connections_come_where_there_is_room() {
        assert_eq!(place(&busy(&[0.7, 0.0])), 0);
        assert_eq!(place(&busy(&[0.8, 0.7])), 1);
        let mut loads = vec![Load::default(); 2];
        for _ in 0..1000 {
            let index = place(&loads);
            loads[index].fresh += 1;
        }
        assert_eq!([loads[0].fresh, loads[1].fresh], [500, 500], "many at once may all bring work");
    }

    #[test]
    fn connections_that_stay_are_spread() {
        let mut loads = busy(&[0.0; 3]);
        for _ in 0..9 {
            let index = settle(&loads);
            loads[index].settled += 1;
        }
        assert!(loads.iter().all(|load| load.settled == 3));
    }
}
