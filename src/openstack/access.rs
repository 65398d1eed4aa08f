//! The way to an image's content in Glance: its address, and a client that
//! shows the token there and nowhere else.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Url, redirect};
use uuid::Uuid;

use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(15);
/// Redirections on the same host that are followed.
const REDIRECTIONS: usize = 3;

/// What a request says about Glance.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// The request's part that says it, for faults.
    pub section: &'static str,
    /// The image endpoint of the service catalogue.
    pub endpoint: &'a str,
    /// Keystone token of the user.
    pub token: &'a str,
    /// Nova's own token, with which Glance takes the user's even after it expired.
    pub service_token: Option<&'a str>,
}

impl Access<'_> {
    /// Checks it, before anything is done for it.
    pub fn check(&self, image: Uuid, config: &config::Images) -> Result<()> {
        self.file_url(image, config)?;
        self.client(config).map(drop)
    }

    /// Where an image's content is: `{endpoint}/v2/images/{id}/file`.
    pub(super) fn file_url(&self, image: Uuid, config: &config::Images) -> Result<Url> {
        let bad = |why: &str| Err(Fault::invalid(format!("{}.endpoint", self.section), why));
        let Ok(mut url) = Url::parse(self.endpoint) else {
            return bad("must be a URL such as https://cloud.example:9292");
        };
        match url.scheme() {
            "https" => {}
            "http" if config.glance_plain_http => {}
            "http" => return bad("must be https; images.glance_plain_http = false forbids http"),
            _ => return bad("must be an https or http URL"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return bad("must not hold a user or password");
        }
        if url.query().is_some() || url.fragment().is_some() || !url.has_host() {
            return bad("must have a host, and no query or fragment");
        }
        // Catalogues hold the endpoint with and without the version.
        let base = url.path().trim_end_matches('/');
        let base = base.strip_suffix("/v2").unwrap_or(base);
        let path = format!("{base}/v2/images/{image}/file");
        url.set_path(&path);
        Ok(url)
    }

    /// A client that shows the token and may be given time limits.
    pub(super) fn client(&self, config: &config::Images) -> Result<ClientBuilder> {
        let mut builder = Client::builder()
            .default_headers(self.headers()?)
            .connect_timeout(CONNECT)
            .redirect(same_host_only())
            // The endpoint is of this cloud; the environment's proxies are not for it.
            .no_proxy();
        for certificate in authorities(config)? {
            builder = builder.add_root_certificate(certificate);
        }
        Ok(builder)
    }

    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let tokens = [
            ("x-auth-token", "token", Some(self.token)),
            ("x-service-token", "service_token", self.service_token),
        ];
        for (header, field, token) in tokens {
            let Some(token) = token else { continue };
            // The error of a bad value would show it, so none of it is passed on.
            let mut value = HeaderValue::from_str(token)
                .ok()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| {
                    let field = format!("{}.{field}", self.section);
                    Fault::invalid(field, "must be a Keystone token")
                })?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }
}

/// The authorities of `images.glance_ca`, besides the system's.
pub(super) fn authorities(config: &config::Images) -> Result<Vec<reqwest::Certificate>> {
    let Some(path) = &config.glance_ca else { return Ok(Vec::new()) };
    let pem = std::fs::read(path)
        .or_fault(format_args!("reading images.glance_ca, {}", path.display()))?;
    reqwest::Certificate::from_pem_bundle(&pem)
        .or_fault(format_args!("parsing images.glance_ca, {}", path.display()))
}

/// The client would send the token to wherever it is sent, so it may only be
/// sent on to the same origin.
fn same_host_only() -> redirect::Policy {
    redirect::Policy::custom(|attempt| {
        let same =
            attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
        if !same {
            attempt.error("it redirects to another host, where the token must not go")
        } else if attempt.previous().len() > REDIRECTIONS {
            attempt.error("it redirects without end")
        } else {
            attempt.follow()
        }
    })
}

/// What went wrong, with its causes and without the address.
pub(super) fn without_url(error: reqwest::Error) -> String {
    use std::error::Error;
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The fault when Glance does not do its part.
pub(super) fn unavailable(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::GlanceUnavailable, format!("Glance: {}", why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let id = Uuid::nil();
        let url = |endpoint: &str, glance_plain_http| {
            let config = config::Images { glance_plain_http, ..Default::default() };
            let access = Access { section: "source", endpoint, token: "t", service_token: None };
            access.file_url(id, &config).map(|url| url.to_string())
        };
        for good in ["https://h:9292", "https://h:9292/", "https://h:9292/v2", "https://h:9292/v2/"]
        {
            assert_eq!(url(good, false).unwrap(), format!("https://h:9292/v2/images/{id}/file"));
        }
        assert_eq!(
            url("https://h/image", false).unwrap(),
            format!("https://h/image/v2/images/{id}/file")
        );
        for bad in
            ["http://h", "ftp://h", "h:9292", "", "https://u:p@h", "https://h?x", "file:///etc"]
        {
            let fault = url(bad, false).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("source.endpoint"), "{bad}");
        }
        assert!(url("http://h", true).is_ok());
    }
}
