//! Certificates and who is believed. All of it travels as secrets: a renewed certificate or trust bundle changes no
//! listener and no cluster.

use std::time::Duration;

use envoy_types::{
    pb::{
        envoy::{
            config::core::v3::{DataSource, TransportSocket, TypedExtensionConfig, data_source, transport_socket},
            extensions::transport_sockets::tls::{
                cert_mappers::sni::v3::Sni,
                cert_selectors::on_demand_secret::v3::Config as OnDemand,
                v3::{
                    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, PrivateKeyProvider,
                    SdsSecretConfig, Secret, SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext,
                    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
                    downstream_tls_context::SessionTicketKeysType,
                    private_key_provider, secret,
                    subject_alt_name_matcher::SanType,
                    tls_parameters::TlsProtocol,
                },
            },
            r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        },
        google::protobuf::{self, Any},
    },
    util::pack_any,
};
use prost::Message;

use super::{ads, duration};
use crate::model::Identity;

/// The secret that holds the certificates of those who may sign for backends.
pub const TRUST: &str = "trust-chain";
/// The same for the external authorizer.
pub const AUTHORIZER_TRUST: &str = "authorizer-trust";
/// Where Envoy's image has the authorities of its distribution.
const SYSTEM_TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";

const SOCKET: &str = "envoy.transport_sockets.tls";
const POLL_DELAY: Duration = Duration::from_millis(10);

/// Envoy's message of that name, which only the contributed extensions have.
#[derive(Clone, PartialEq, Message)]
struct CryptoMbPrivateKeyMethodConfig {
    #[prost(message, optional, tag = "1")]
    private_key: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    poll_delay: Option<protobuf::Duration>,
}

/// A certificate for listeners.
pub fn certificate(name: &str, chain: &[u8], key: &[u8], cryptomb: bool) -> Secret {
    let mut certificate = TlsCertificate { certificate_chain: inline(chain), ..Default::default() };
    if cryptomb {
        let config = CryptoMbPrivateKeyMethodConfig { private_key: inline(key), poll_delay: duration(POLL_DELAY) };
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.private_key_providers.cryptomb.v3alpha.\
                       CryptoMbPrivateKeyMethodConfig"
                .to_owned(),
            value: config.encode_to_vec(),
        };
        certificate.private_key_provider = Some(PrivateKeyProvider {
            provider_name: "cryptomb".to_owned(),
            config_type: Some(private_key_provider::ConfigType::TypedConfig(any)),
            ..Default::default()
        });
    } else {
        certificate.private_key = inline(key);
    }
    Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

/// Who may sign, as a secret of this name.
pub fn trust(name: &str, chain: &[u8]) -> Secret {
    let context = CertificateValidationContext { trusted_ca: inline(chain), ..Default::default() };
    Secret { name: name.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

/// TLS to clients, with this certificate; without a name, with the secret of the server name that a client asks for.
pub(super) fn downstream<'a>(secret: Option<&str>, cipher_suites: impl Iterator<Item = &'a String>) -> TransportSocket {
    let mut common = CommonTlsContext {
        alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
            cipher_suites: cipher_suites.cloned().collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let Some(secret) = secret else {
        common.custom_tls_certificate_selector = Some(on_demand());
        return socket(pack_any(DownstreamTlsContext {
            common_tls_context: Some(common),
            // The selector asks for this.
            disable_stateful_session_resumption: true,
            session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
            ..Default::default()
        }));
    };
    let certificate = SdsSecretConfig { name: secret.to_owned(), sds_config: Some(ads(None)) };
    common.tls_certificate_sds_secret_configs.push(certificate);
    socket(pack_any(DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() }))
}

fn on_demand() -> TypedExtensionConfig {
    let extension = |name: &str, config| TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) };
    // No server has this name.
    let nameless = Sni { default_value: "-".to_owned() };
    let config = OnDemand {
        config_source: Some(ads(None)),
        certificate_mapper: Some(extension("envoy.tls.certificate_mappers.sni", pack_any(nameless))),
        ..Default::default()
    };
    extension("envoy.tls.certificate_selectors.on_demand_secret", pack_any(config))
}

/// TLS to a backend that proves to be one of these.
pub(super) fn upstream(identity: &Identity, http2: bool) -> TransportSocket {
    let names = identity.names.iter().map(|name| SubjectAltNameMatcher {
        san_type: SanType::Dns as i32,
        matcher: Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(name.clone())), ..Default::default() }),
        ..Default::default()
    });
    let checks = CertificateValidationContext { match_typed_subject_alt_names: names.collect(), ..Default::default() };
    let common = CommonTlsContext {
        alpn_protocols: if http2 { vec!["h2".to_owned()] } else { Vec::new() },
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(trusting(checks, TRUST))),
        ..Default::default()
    };
    socket(pack_any(UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() }))
}

/// TLS to a server by its name or address, which its certificate must have. `bundled`: signed by what is published as
/// [`AUTHORIZER_TRUST`]; otherwise by somebody whom the gateway's own system believes.
pub(super) fn named(server: &str, bundled: bool) -> TransportSocket {
    let is_address = server.parse::<std::net::IpAddr>().is_ok();
    let name = SubjectAltNameMatcher {
        san_type: if is_address { SanType::IpAddress } else { SanType::Dns } as i32,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(server.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let checks = CertificateValidationContext { match_typed_subject_alt_names: vec![name], ..Default::default() };
    let system = || DataSource {
        specifier: Some(data_source::Specifier::Filename(SYSTEM_TRUST.to_owned())),
        ..Default::default()
    };
    let validation = match bundled {
        true => ValidationContextType::CombinedValidationContext(trusting(checks, AUTHORIZER_TRUST)),
        false => ValidationContextType::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(system()),
            ..checks
        }),
    };
    let common = CommonTlsContext { validation_context_type: Some(validation), ..Default::default() };
    // Addresses are no server names.
    let sni = if is_address { String::new() } else { server.to_owned() };
    socket(pack_any(UpstreamTlsContext { common_tls_context: Some(common), sni, ..Default::default() }))
}

/// These checks of a certificate that is signed by one of a secret.
fn trusting(checks: CertificateValidationContext, secret: &str) -> CombinedCertificateValidationContext {
    CombinedCertificateValidationContext {
        default_validation_context: Some(checks),
        validation_context_sds_secret_config: Some(SdsSecretConfig {
            name: secret.to_owned(),
            sds_config: Some(ads(None)),
        }),
        ..Default::default()
    }
}

fn socket(config: Any) -> TransportSocket {
    TransportSocket { name: SOCKET.to_owned(), config_type: Some(transport_socket::ConfigType::TypedConfig(config)) }
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec())), ..Default::default() })
}
