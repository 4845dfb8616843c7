//! The page for people at `/`: it chats with any model of the endpoint, and shows which version answered
//! and how fast. One file without external resources; what it does goes through the API like any client.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};

use crate::failure::Failure;

const PAGE: &str = include_str!("page.html");

/// The page, for who accepts HTML; for any other client there is nothing at `/`.
pub async fn page(headers: HeaderMap) -> Response {
    if !accepts_html(&headers) {
        return Failure::UnknownPath {
            path: "/".to_owned(),
        }
        .into_response();
    }
    // What a model writes is shown as text. Should a browser see a script in it all the same, only those
    // with this number may run, and nothing may be fetched from elsewhere.
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::VARY, "accept"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE.replace("{nonce}", &nonce)).into_response()
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn browsers_accept_html_and_api_clients_do_not() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("application/json, Text/HTML;q=0.9", true),
            ("*/*", false),
            ("application/json", false),
        ] {
            let accept = HeaderValue::from_static(accept);
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept)]);
            assert_eq!(accepts_html(&headers), expected, "{headers:?}");
        }
        assert!(!accepts_html(&HeaderMap::new()));
    }

    #[test]
    fn the_page_names_no_other_host_and_every_control_has_a_label() {
        assert!(
            !PAGE.contains("//"),
            "an address, or a comment that looks like one"
        );
        assert_eq!(PAGE.matches("nonce=\"{nonce}\"").count(), 2);
        for control in ["<select id=", "<input id=", "<textarea id="] {
            for rest in PAGE.split(control).skip(1) {
                let id = rest.split('"').nth(1).unwrap();
                assert!(PAGE.contains(&format!("<label for=\"{id}\"")), "{id}");
            }
        }
        for way_in in [".innerHTML", ".outerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!PAGE.contains(way_in), "{way_in}");
        }
    }
}
