//! The pods in use, as a snapshot that readers index and that a change replaces.
//!
//! The list is in pieces, and a new snapshot shares the pieces that did not change with the old one: one pod that comes
//! or goes costs one piece and the list of pieces, however many pods there are. Order is kept only where a whole list
//! is given ([`Pods::from`]): a pod that goes leaves its place to the last one.

use std::sync::Arc;

use super::Pod;

/// Pods of a piece; all pieces but the last are full.
const PIECE: usize = 64;

#[derive(Debug, Clone, Default)]
pub(crate) struct Pods {
    pieces: Vec<Arc<Vec<Arc<Pod>>>>,
}

// === impl Pods ===

impl Pods {
    pub(crate) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn get(&self, index: usize) -> &Arc<Pod> {
        &self.pieces[index / PIECE][index % PIECE]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// Adds a pod that is not in it.
    pub(super) fn push(&mut self, pod: Arc<Pod>) {
        pod.set_place(self.len());
        match self.pieces.last_mut().filter(|last| last.len() < PIECE) {
            Some(last) => Arc::make_mut(last).push(pod),
            None => self.pieces.push(Arc::new(vec![pod])),
        }
    }

    /// Takes a pod out; false if it is not in it.
    pub(super) fn remove(&mut self, pod: &Arc<Pod>) -> bool {
        let place = pod.place();
        if place >= self.len() || !Arc::ptr_eq(self.get(place), pod) {
            return false;
        }
        let last = Arc::make_mut(self.pieces.last_mut().expect("a pod is in it"));
        let moved = last.pop().expect("no piece is empty");
        if last.is_empty() {
            self.pieces.pop();
        }
        if !Arc::ptr_eq(&moved, pod) {
            moved.set_place(place);
            Arc::make_mut(&mut self.pieces[place / PIECE])[place % PIECE] = moved;
        }
        true
    }
}

impl From<Vec<Arc<Pod>>> for Pods {
    /// In this order.
    fn from(pods: Vec<Arc<Pod>>) -> Self {
        pods.iter().enumerate().for_each(|(place, pod)| pod.set_place(place));
        Self { pieces: pods.chunks(PIECE).map(|piece| Arc::new(piece.to_vec())).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use super::*;
    use crate::throttler::Link;

    fn pod(port: u16) -> Arc<Pod> {
        Pod::new(SocketAddr::from(([127, 0, 0, 1], port)).into(), 0, &Link::plain())
    }

    fn ports(pods: &Pods) -> Vec<u16> {
        pods.iter().map(|pod| pod.address().port()).collect()
    }

    #[test]
    fn pods_come_and_go_and_snapshots_stay_as_they_were() {
        let mut random = fastrand::Rng::with_seed(5);
        let all: Vec<_> = (0..300).map(pod).collect();
        let mut inside: BTreeSet<u16> = (0..150).collect();
        let mut pods = Pods::from(all[..150].to_vec());
        assert_eq!(ports(&pods), (0..150).collect::<Vec<_>>());
        for _ in 0..3000 {
            let (before, shown) = (pods.clone(), ports(&pods));
            for _ in 0..random.usize(..4) {
                // Towards the edges now and then.
                let port = if random.u8(..8) == 0 { *inside.first().unwrap_or(&0) } else { random.u16(..300) };
                let pod = &all[usize::from(port)];
                assert_eq!(pods.remove(pod), inside.remove(&port));
                if random.bool() {
                    pods.push(pod.clone());
                    inside.insert(port);
                }
            }
            assert_eq!(pods.len(), inside.len());
            assert_eq!(pods.is_empty(), inside.is_empty());
            assert_eq!(ports(&pods).into_iter().collect::<BTreeSet<_>>(), inside);
            assert!((0..pods.len()).all(|index| pods.get(index).place() == index));
            assert_eq!(ports(&before), shown);
        }
        inside.iter().for_each(|port| assert!(pods.remove(&all[usize::from(*port)])));
        assert_eq!((pods.len(), pods.is_empty()), (0, true));
    }

    #[test]
    fn a_change_of_one_leaves_the_other_pieces_alone() {
        let all: Vec<_> = (0..1000).map(pod).collect();
        let before = Pods::from(all.clone());
        let mut after = before.clone();
        assert!(after.remove(&all[300]));
        after.push(pod(2000));
        let same = before.pieces.iter().zip(&after.pieces).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert_eq!(same, before.pieces.len() - 2);
    }
}
