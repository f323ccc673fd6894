//! `headers/tags`: a request that carries a tag goes to the tagged backend, any other to the default.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_chooses_the_backend() {
    both(async |rig| {
        let (tagged, default) = (Backend::start("tagged").await, Backend::start("default").await);
        rig.service("tagged", "http", &[tagged.address]);
        rig.service("default", "http", &[default.address]);
        let paths = json!([
            {"headers": {"Knative-Serving-Tag": {"exact": "the-tag"}}, "splits": [to("tagged", 100)]},
            {"splits": [to("default", 100)]},
        ]);
        rig.ingress("tags", external(&["tags.example.com"], paths));
        rig.ready("tags").await;
        for (headers, backend) in [
            (vec![("Knative-Serving-Tag", "the-tag")], "tagged"),
            (vec![("Knative-Serving-Tag", "")], "default"),
            (vec![("Knative-Serving-Tag", "wrong")], "default"),
            (vec![], "default"),
        ] {
            let request = Request { headers, ..Request::to("tags.example.com") };
            assert_eq!(rig.send(&request).await.text("backend"), backend);
        }
    })
    .await;
}
