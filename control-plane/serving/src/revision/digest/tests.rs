use serde_json::json;

use super::*;

struct Fixed(Result<String, String>);

impl Registry for Fixed {
    fn digest(&self, _: &Reference) -> Answer {
        let answer = self.0.clone();
        Box::pin(async move { answer })
    }
}

fn revision(images: &[&str]) -> Revision {
    let containers: Vec<_> =
        images.iter().enumerate().map(|(i, image)| json!({"name": format!("c{i}"), "image": image})).collect();
    serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"containers": containers}})).unwrap()
}

fn digests(answer: Result<&str, &str>) -> (Tasks, Queue, Arc<Digests>) {
    let (tasks, queue) = (Tasks::new(), Queue::new());
    let registry = Arc::new(Fixed(answer.map(str::to_owned).map_err(str::to_owned)));
    (tasks.clone(), queue.clone(), Digests::new(registry, tasks, queue))
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "r")
}

async fn enqueued(queue: &Queue) {
    let waiting = async {
        while queue.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the revision is reconciled again");
}

#[test]
fn references() {
    let parse = |image: &str| Reference::parse(image).map(|reference| reference.to_string());
    assert_eq!(parse("nginx").unwrap(), "index.docker.io/library/nginx:latest");
    assert_eq!(parse("me/app:v1").unwrap(), "index.docker.io/me/app:v1");
    assert_eq!(parse("docker.io/me/app").unwrap(), "index.docker.io/me/app:latest");
    assert_eq!(parse("localhost:5000/app").unwrap(), "localhost:5000/app:latest");
    assert_eq!(parse("gcr.io/a/b/c:x-1").unwrap(), "gcr.io/a/b/c:x-1");
    for bad in ["", "Nginx", "a b", "app:", "gcr.io/app:a/b:c d"] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
    assert!(reference::is_digest(&format!("x@sha256:{}", "a".repeat(64))));
    assert!(!reference::is_digest("x@sha256:abc"));
}

#[tokio::test]
async fn images_that_need_no_registry_are_settled_at_once() {
    let (_, queue, digests) = digests(Err("must not be asked"));
    let pinned = format!("gcr.io/a@sha256:{}", "0".repeat(64));
    let revision = revision(&["dev.local/hello", &pinned]);
    let Progress::Resolved { containers, init_containers } =
        digests.resolve(&key(), &revision, &config::Deployment::default())
    else {
        panic!("not settled")
    };
    assert_eq!(containers[0], ContainerStatus { name: "c0".into(), image_digest: String::new() });
    assert_eq!(containers[1].image_digest, pinned);
    assert!(init_containers.is_empty() && queue.is_empty());
}

#[tokio::test]
async fn tags_are_asked_for_in_the_background() {
    let (tasks, queue, digests) = digests(Ok("sha256:1"));
    let (revision, config) = (revision(&["nginx", "dev.local/xy", "nginx"]), config::Deployment::default());
    assert_eq!(digests.resolve(&key(), &revision, &config), Progress::Resolving);
    enqueued(&queue).await;
    let Progress::Resolved { containers, .. } = digests.resolve(&key(), &revision, &config) else {
        panic!("not resolved")
    };
    let found: Vec<_> = containers.iter().map(|container| container.image_digest.as_str()).collect();
    assert_eq!(found, ["index.docker.io/library/nginx@sha256:1", "", "index.docker.io/library/nginx@sha256:1"]);
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_failure_is_told_once_and_then_asked_again() {
    let (tasks, queue, digests) = digests(Err("connection refused"));
    let (revision, config) = (revision(&["nginx"]), config::Deployment::default());
    assert_eq!(digests.resolve(&key(), &revision, &config), Progress::Resolving);
    enqueued(&queue).await;
    let Progress::Failed(failure) = digests.resolve(&key(), &revision, &config) else { panic!("not failed") };
    assert_eq!(
        failure.to_string(),
        r#"Unable to fetch image "nginx": failed to resolve image to digest: connection refused"#
    );
    assert_eq!(digests.resolve(&key(), &revision, &config), Progress::Resolving);
    tasks.shutdown().await;
}

#[test]
fn a_name_that_is_no_image_fails_at_once() {
    let (_, _, digests) = digests(Ok("x"));
    let progress = digests.resolve(&key(), &revision(&["Not An Image"]), &config::Deployment::default());
    assert!(matches!(progress, Progress::Failed(failure) if failure.reason.contains("into a tag")));
}
