//! Which of a revision's pods are this activator's, as pods come and go.
//!
//! Pods are divided by their places in the order of their names, so one that comes or goes moves the borders between
//! activators by a few places, and only the pods there change hands, however many there are.

use std::{ops::Range, sync::Arc};

use super::{Moved, Name, Peers};
use crate::throttler::Pod;

/// More than so many changes for one of all pods are not looked at one by one.
const FEW: usize = 8;

/// The pods that may be used, in their order, of which some are our own.
pub(super) struct Division {
    peers: Peers,
    order: Vec<(Name, Arc<Pod>)>,
}

// === impl Division ===

impl Division {
    /// Of pods in their order.
    pub(super) fn new(peers: Peers, order: Vec<(Name, Arc<Pod>)>) -> Self {
        Self { peers, order }
    }

    pub(super) fn own(&self) -> Vec<Arc<Pod>> {
        self.part().into_iter().flat_map(|range| &self.order[range]).map(|(_, pod)| pod.clone()).collect()
    }

    /// What changes of our own pods when these of all change. Nothing if it is better to divide anew, and then this is
    /// of no use any more.
    pub(super) fn change(&mut self, moved: &Moved) -> Option<Moved> {
        if (moved.gone.len() + moved.come.len()) * FEW > self.order.len() {
            return None;
        }
        let mut own = Moved::default();
        for pod in &moved.gone {
            let before = self.part();
            let at = self.place(&Name::of(pod.endpoint())).ok().filter(|at| Arc::ptr_eq(&self.order[*at].1, pod))?;
            self.order.remove(at);
            if before.iter().any(|range| range.contains(&at)) {
                own.note(pod, false);
            }
            let nearer = |index: usize| index - usize::from(index > at);
            self.pass_on(&before.map(|range| nearer(range.start)..nearer(range.end)), &mut own);
        }
        for pod in &moved.come {
            let before = self.part();
            let name = Name::of(pod.endpoint());
            let at = self.place(&name).err()?;
            self.order.insert(at, (name, pod.clone()));
            let [run, one] = before;
            let split =
                |Range { start, end }: Range<usize>| [start.min(at)..end.min(at), start.max(at) + 1..end.max(at) + 1];
            self.pass_on(&[split(run), split(one)].concat(), &mut own);
        }
        Some(own)
    }

    /// Notes which pods come and go where those at `before` were our own until now.
    fn pass_on(&self, before: &[Range<usize>], own: &mut Moved) {
        let now = self.part();
        for (from, without, is_new) in [(before, &now[..], false), (&now[..], before, true)] {
            for range in minus(from, without) {
                self.order[range].iter().for_each(|(_, pod)| own.note(pod, is_new));
            }
        }
    }

    fn part(&self) -> [Range<usize>; 2] {
        self.peers.part(self.order.len())
    }

    fn place(&self, name: &Name) -> Result<usize, usize> {
        self.order.binary_search_by(|(other, _)| other.cmp(name))
    }
}

/// What is in some of these ranges and in none of those.
fn minus(these: &[Range<usize>], those: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    for Range { mut start, end } in these.iter().cloned() {
        while start < end {
            if let Some(other) = those.iter().find(|other| other.contains(&start)) {
                start = other.end;
                continue;
            }
            let next = those.iter().filter(|other| !other.is_empty() && other.start > start).map(|other| other.start);
            let until = next.min().map_or(end, |next| next.min(end));
            left.push(start..until);
            start = until;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr};

    use super::*;
    use crate::throttler::Link;

    fn pod(number: u16) -> (Name, Arc<Pod>) {
        let pod = Pod::new(SocketAddr::from(([127, 0, 0, 1], number)).into(), 1, &Link::plain());
        (Name::of(pod.endpoint()), pod)
    }

    fn ports<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Vec<u16> {
        let mut ports: Vec<_> = pods.into_iter().map(|pod| pod.address().port()).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn a_few_pods_change_hands_for_each_that_comes_or_goes() {
        let mut random = fastrand::Rng::with_seed(7);
        let known: Vec<_> = (100..300).map(pod).collect();
        for count in [1, 2, 3, 5, 60] {
            for index in [0, 1, count / 2, count - 1] {
                let peers = Peers { index, count };
                let mut all: BTreeMap<_, _> = known.iter().step_by(2).map(|(name, pod)| (name, pod)).collect();
                let order = |all: &BTreeMap<&Name, &Arc<Pod>>| -> Vec<_> {
                    all.iter().map(|(name, pod)| ((*name).clone(), (*pod).clone())).collect()
                };
                let mut division = Division::new(peers, order(&all));
                let mut own = ports(&division.own());
                for _ in 0..300 {
                    let mut moved = Moved::default();
                    for _ in 0..random.usize(1..4) {
                        let (name, pod) = &known[random.usize(..known.len())];
                        let is_new = all.remove(name).is_none();
                        if is_new {
                            all.insert(name, pod);
                        }
                        moved.note(pod, is_new);
                    }
                    let changes = moved.gone.len() + moved.come.len();
                    let Some(change) = division.change(&moved) else {
                        assert!(changes * FEW > all.len() - 4, "{changes} of {}", all.len());
                        division = Division::new(peers, order(&all));
                        own = ports(&division.own());
                        continue;
                    };
                    let most = changes * (2 * index + 4);
                    assert!(change.gone.len() + change.come.len() <= most, "{peers:?}, {changes} changes");
                    own.retain(|port| !ports(&change.gone).contains(port));
                    own.extend(ports(&change.come));
                    own.sort_unstable();
                    let owned = |index: usize| peers.owns(index, all.len());
                    let expected = all.values().enumerate().filter(|(index, _)| owned(*index)).map(|(_, pod)| *pod);
                    assert_eq!(own, ports(expected), "{peers:?}");
                    assert_eq!(own, ports(&division.own()));
                }
            }
        }
    }

    #[test]
    fn what_is_not_as_it_was_told_is_divided_anew() {
        let all: Vec<_> = (100..120).map(pod).collect();
        let unknown = Moved { gone: vec![pod(100).1], come: Vec::new() };
        let known = Moved { gone: Vec::new(), come: vec![all[3].1.clone()] };
        for moved in [unknown, known] {
            assert!(Division::new(Peers { index: 0, count: 2 }, all.clone()).change(&moved).is_none());
        }
    }
}
