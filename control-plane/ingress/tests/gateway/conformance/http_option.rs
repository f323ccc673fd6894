//! `httpoption`: with a certificate, plain text is answered or sent to TLS.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_is_answered_or_redirected() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        rig.service("app", "http", &[backend.address]);
        let certificate = Certificate::new(&["on.example.com", "to.example.com"]);
        rig.secret("default", "cert", &certificate.data());
        for (name, host, option) in [("on", "on.example.com", "Enabled"), ("to", "to.example.com", "Redirected")] {
            let mut spec = external(&[host], json!([{"splits": [to("app", 100)]}]));
            spec["httpOption"] = json!(option);
            spec["tls"] = json!([{"hosts": [host], "secretName": "cert", "secretNamespace": "default"}]);
            rig.ingress(name, spec);
            rig.ready(name).await;
        }
        for (host, status) in [("on.example.com", 200), ("to.example.com", 301)] {
            let request = Request::to(host);
            let answer = rig.get(host).await;
            assert_eq!(answer.status, status, "{host}");
            if status == 301 {
                assert_eq!(answer.headers["location"], "https://to.example.com/");
            }
            rig.until("TLS", async || {
                send_tls(rig.external_tls, &certificate, &request).await.is_ok_and(|a| a.status == 200)
            })
            .await;
        }
    })
    .await;
}
