//! How a listener finds the routes of a host when they travel by scope.
//!
//! Scopes are compared byte by byte, and those of all listeners come in one set. So each listener sets a header, before
//! anything else sees the request, to the name of its table and the host that was asked for; the scope is this header up
//! to a port. Routes remove it. A host that was not written in lower case finds no scope, and goes through a filter
//! that no other request goes through: it corrects the header and has the routes looked up again.

use envoy_types::{
    pb::{
        envoy::{
            config::{
                common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation},
                core::v3::{
                    DataSource, HeaderValue, HeaderValueOption, TypedExtensionConfig, data_source,
                    header_value_option::HeaderAppendAction,
                },
            },
            extensions::filters::network::http_connection_manager::v3::{
                HttpFilter, ScopedRds, ScopedRoutes, http_filter,
                scoped_routes::{
                    ConfigSpecifier, ScopeKeyBuilder,
                    scope_key_builder::{
                        FragmentBuilder,
                        fragment_builder::{self, HeaderValueExtractor, header_value_extractor::ExtractType},
                    },
                },
            },
            extensions::{
                common::matching::v3::ExtensionWithMatcher,
                filters::{common::matcher::action::v3::SkipFilter, http::lua::v3::Lua},
                http::early_header_mutation::header_mutation::v3::HeaderMutation,
            },
            r#type::matcher::v3::HttpRequestHeaderMatchInput,
        },
        xds::{
            core::v3::TypedExtensionConfig as MatchExtension,
            r#type::matcher::v3::{
                Matcher, RegexMatcher, StringMatcher,
                matcher::{
                    MatcherList, MatcherType, OnMatch,
                    matcher_list::{
                        FieldMatcher, Predicate,
                        predicate::{MatchType, SinglePredicate, single_predicate},
                    },
                    on_match,
                },
                regex_matcher::{EngineType, GoogleRe2},
                string_matcher::MatchPattern,
            },
        },
    },
    util::pack_any,
};

use super::ads;
use crate::model::Table;

pub(super) const SCOPE_HEADER: &str = "x-postrider-scope";

const CORRECT: &str = "function envoy_on_request(request)
  local headers = request:headers()
  headers:replace('x-postrider-scope', string.lower(headers:get('x-postrider-scope')))
  request:clearRouteCache()
end";

pub(super) fn routes() -> ScopedRoutes {
    let extractor = HeaderValueExtractor {
        name: SCOPE_HEADER.to_owned(),
        element_separator: ":".to_owned(),
        extract_type: Some(ExtractType::Index(0)),
    };
    let fragment = FragmentBuilder { r#type: Some(fragment_builder::Type::HeaderValueExtractor(extractor)) };
    ScopedRoutes {
        // One set for all listeners.
        name: "hosts".to_owned(),
        scope_key_builder: Some(ScopeKeyBuilder { fragments: vec![fragment] }),
        rds_config_source: Some(ads(None)),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: Some(ads(None)),
            ..Default::default()
        })),
    }
}

/// Before routes are looked up.
pub(super) fn header(table: Table) -> TypedExtensionConfig {
    let append = HeaderValueOption {
        header: Some(HeaderValue {
            key: SCOPE_HEADER.to_owned(),
            value: format!("{}/%REQ(:authority)%", table.name()),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    };
    let mutation = Mutation { action: Some(header_mutation::Action::Append(append)) };
    TypedExtensionConfig {
        name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
        typed_config: Some(pack_any(HeaderMutation { mutations: vec![mutation] })),
    }
}

/// For hosts with capital letters.
pub(super) fn correction() -> HttpFilter {
    let lua = Lua {
        default_source_code: Some(DataSource {
            specifier: Some(data_source::Specifier::InlineString(CORRECT.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let host = HttpRequestHeaderMatchInput { header_name: ":authority".to_owned() };
    let capitals = StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
            engine_type: Some(EngineType::GoogleRe2(GoogleRe2 {})),
            regex: ".*[A-Z].*".to_owned(),
        })),
        ..Default::default()
    };
    let extension =
        |name: &str, typed_config| MatchExtension { name: name.to_owned(), typed_config: Some(typed_config) };
    let has_capitals = Predicate {
        match_type: Some(MatchType::SinglePredicate(SinglePredicate {
            input: Some(extension("host", pack_any(host))),
            matcher: Some(single_predicate::Matcher::ValueMatch(capitals)),
        })),
    };
    let has_none = Predicate { match_type: Some(MatchType::NotMatcher(Box::new(has_capitals))) };
    let skip = OnMatch {
        on_match: Some(on_match::OnMatch::Action(extension("skip", pack_any(SkipFilter {})))),
        ..Default::default()
    };
    let matcher = Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList {
            matchers: vec![FieldMatcher { predicate: Some(has_none), on_match: Some(skip) }],
        })),
        ..Default::default()
    };
    let filter = ExtensionWithMatcher {
        extension_config: Some(TypedExtensionConfig {
            name: "envoy.filters.http.lua".to_owned(),
            typed_config: Some(pack_any(lua)),
        }),
        xds_matcher: Some(matcher),
        ..Default::default()
    };
    HttpFilter {
        name: "scope_of_capitals".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(filter))),
        ..Default::default()
    }
}
