//! Image tags become digests once per revision (controllers.md 6.1), so that all its pods run the same image for ever.
//!
//! Images that need no registry (already by digest, or of a registry that is skipped) are settled at once. The others are asked for
//! in the background; the revision is reconciled again when the answer is there.

mod reference;
mod registry;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::config;
use api::serving::v1::{ContainerStatus, Revision};
use controller::{ObjectKey, Queue, Tasks};
use parking_lot::Mutex;
use serde_json::Value;

pub use reference::Reference;
pub use registry::Https;

const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(1000);

type Answer = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Asks registries. The answer is the digest (`sha256:...`) of the tagged image.
pub trait Registry: Send + Sync + 'static {
    fn digest(&self, image: &Reference) -> Answer;
}

/// Digests of revisions under way.
pub struct Digests {
    registry: Arc<dyn Registry>,
    tasks: Tasks,
    queue: Queue,
    work: Mutex<BTreeMap<ObjectKey, Work>>,
    /// Consecutive failures: the registry is asked again after 1 s, 2 s, 4 s...
    failures: Mutex<BTreeMap<ObjectKey, u32>>,
}

#[derive(Debug, Clone)]
enum Work {
    Running,
    Done(Result<BTreeMap<String, String>, Failure>),
}

/// The image that could not be resolved, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub image: String,
    pub reason: String,
}

/// Where a revision's digests are.
#[derive(Debug, PartialEq)]
pub enum Progress {
    Resolved { containers: Vec<ContainerStatus>, init_containers: Vec<ContainerStatus> },
    Resolving,
    Failed(Failure),
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unable to fetch image {:?}: failed to resolve image to digest: {}", self.image, self.reason)
    }
}

// === impl Digests ===

impl Digests {
    pub fn new(registry: Arc<dyn Registry>, tasks: Tasks, queue: Queue) -> Arc<Self> {
        Arc::new(Digests { registry, tasks, queue, work: Mutex::default(), failures: Mutex::default() })
    }

    /// The digests of `revision`'s images, or how far they are.
    pub fn resolve(self: &Arc<Self>, key: &ObjectKey, revision: &Revision, config: &config::Deployment) -> Progress {
        let finished = {
            let mut work = self.work.lock();
            match work.get(key) {
                Some(Work::Running) => return Progress::Resolving,
                Some(Work::Done(_)) => work.remove(key),
                None => None,
            }
        };
        let known = match finished {
            Some(Work::Done(Ok(known))) => known,
            // Forgotten with this answer, so that the retry asks again.
            Some(Work::Done(Err(failure))) => return Progress::Failed(failure),
            _ => BTreeMap::new(),
        };
        let mut missing = Vec::new();
        let mut list = |containers: &[Value]| -> Result<Vec<ContainerStatus>, Failure> {
            let mut statuses = Vec::new();
            for container in containers {
                let image = container["image"].as_str().unwrap_or_default();
                let digest = match known.get(image) {
                    Some(digest) => digest.clone(),
                    None => settle(image, config)?.unwrap_or_else(|reference| {
                        missing.push((image.to_owned(), reference));
                        String::new()
                    }),
                };
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                statuses.push(ContainerStatus { name, image_digest: digest });
            }
            Ok(statuses)
        };
        let lists = list(revision.spec.pod.containers())
            .and_then(|containers| Ok((containers, list(revision.spec.pod.init_containers())?)));
        match lists {
            Err(failure) => Progress::Failed(failure),
            Ok((containers, init_containers)) if missing.is_empty() => {
                Progress::Resolved { containers, init_containers }
            }
            Ok(_) => {
                self.start(key.clone(), missing, config.digest_resolution_timeout);
                Progress::Resolving
            }
        }
    }

    pub fn forget(&self, key: &ObjectKey) {
        self.work.lock().remove(key);
        self.failures.lock().remove(key);
    }

    fn start(self: &Arc<Self>, key: ObjectKey, mut images: Vec<(String, Reference)>, timeout: Duration) {
        images.sort_by(|a, b| a.0.cmp(&b.0));
        images.dedup_by(|a, b| a.0 == b.0);
        self.work.lock().insert(key.clone(), Work::Running);
        let this = self.clone();
        let delay = match self.failures.lock().get(&key) {
            None => Duration::ZERO,
            Some(failures) => RETRY.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_RETRY),
        };
        self.tasks.spawn("digest", async move {
            tokio::time::sleep(delay).await;
            let asked = images.into_iter().map(|(image, reference)| {
                let answer = this.registry.digest(&reference);
                async move {
                    let answer = tokio::time::timeout(timeout, answer).await;
                    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
                    match answer {
                        Ok(digest) => Ok((image, reference.at(&digest))),
                        Err(reason) => Err(Failure { image, reason }),
                    }
                }
            });
            let result = futures::future::try_join_all(asked).await;
            let result = result.map(|digests| digests.into_iter().collect());
            match &result {
                Ok(_) => drop(this.failures.lock().remove(&key)),
                Err(_) => *this.failures.lock().entry(key.clone()).or_default() += 1,
            }
            // Gone meanwhile: nobody wants to know.
            if let Some(work) = this.work.lock().get_mut(&key) {
                *work = Work::Done(result);
            }
            this.queue.add(key);
        });
    }
}

/// Whether all containers have their digests. They are never resolved again.
pub fn is_done(revision: &Revision) -> bool {
    let pod = &revision.spec.pod;
    let wanted = pod.containers().len() + pod.init_containers().len();
    let have = revision
        .status
        .as_ref()
        .map_or(0, |status| status.container_statuses.len() + status.init_container_statuses.len());
    wanted == have
}

/// The digest of an image that needs no registry (empty: run it as it is), or the reference to ask for.
fn settle(image: &str, config: &config::Deployment) -> Result<Result<String, Reference>, Failure> {
    if reference::is_digest(image) {
        return Ok(Ok(image.to_owned()));
    }
    let reference = Reference::parse(image).map_err(|error| Failure {
        image: image.to_owned(),
        reason: format!("failed to parse image name {image:?} into a tag: {error}"),
    })?;
    if config.registries_skipping_tag_resolving.contains(&reference.registry) {
        return Ok(Ok(String::new()));
    }
    Ok(Err(reference))
}

#[cfg(test)]
mod tests;
