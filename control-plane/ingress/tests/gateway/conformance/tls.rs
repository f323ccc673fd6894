//! `tls`: a host with a certificate is answered over TLS and in plain text.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_certificate_is_answered_over_tls() {
    both(async |rig| {
        let backend = Backend::start("app").await;
        let certificate = Certificate::new(&["tls.example.com"]);
        rig.service("app", "http", &[backend.address]);
        rig.secret("default", "cert", &certificate.data());
        let mut spec = external(&["tls.example.com"], json!([{"splits": [to("app", 100)]}]));
        spec["tls"] = json!([{"hosts": ["tls.example.com"], "secretName": "cert", "secretNamespace": "default"}]);
        rig.ingress("tls", spec);
        rig.ready("tls").await;
        assert_eq!(rig.get("tls.example.com").await.status, 200);
        let request = Request::to("tls.example.com");
        for address in [rig.external_tls, rig.probe_tls] {
            rig.until("TLS", async || send_tls(address, &certificate, &request).await.is_ok_and(|a| a.status == 200))
                .await;
        }
        let answer = send_tls(rig.external_tls, &certificate, &request).await.unwrap();
        assert_eq!(answer.header("x-forwarded-proto"), "https");
    })
    .await;
}
