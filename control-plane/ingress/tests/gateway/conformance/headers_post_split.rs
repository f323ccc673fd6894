//! `headers/post-split`: each share of a split has its own header.

use std::collections::BTreeSet;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_split_sets_its_own_header() {
    both(async |rig| {
        let mut splits = Vec::new();
        let mut backends = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let backend = Backend::start(name).await;
            rig.service(name, "http", &[backend.address]);
            backends.push(backend);
            let mut split = to(name, 25);
            split["appendHeaders"] = json!({"Foo-Bar": name});
            splits.push(split);
        }
        rig.ingress("headers", external(&["headers.example.com"], json!([{"splits": splits}])));
        rig.ready("headers").await;
        for headers in [vec![], vec![("Foo-Bar", "bogus")]] {
            let request = Request { headers, ..Request::to("headers.example.com") };
            let mut seen = BTreeSet::new();
            for _ in 0..100 {
                let answer = rig.send(&request).await;
                assert_eq!(answer.header("foo-bar"), answer.text("backend"));
                seen.insert(answer.header("foo-bar").to_owned());
            }
            assert_eq!(seen.len(), 4, "{seen:?}");
        }
    })
    .await;
}
