//! The way to an image's content in Glance: its address, and a client that
//! shows the token there and nowhere else.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Url, redirect};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::keystone;
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
    /// The image endpoint of the service catalogue; `None`, without a token: of
    /// the catalogue that the service's own credentials show.
    pub endpoint: Option<&'a str>,
    /// Keystone token of the user; `None`: the service's own credentials.
    pub token: Option<&'a str>,
    /// Nova's own token, with which Glance takes the user's even after it expired.
    pub service_token: Option<&'a str>,
}

/// An address and the tokens that are shown there.
pub(super) struct Granted {
    section: &'static str,
    endpoint: String,
    token: String,
    service_token: Option<String>,
}

impl Access<'_> {
    /// Checks it, before anything is done for it.
    pub fn check(&self, image: Uuid, config: &config::Images) -> Result<()> {
        let bad =
            |field: &str, why: &str| Err(Fault::invalid(format!("{}.{field}", self.section), why));
        match (self.token, self.endpoint) {
            (Some(token), Some(endpoint)) => {
                let granted = self.granted(token, endpoint);
                granted.file_url(image, config)?;
                granted.client(config).map(drop)
            }
            (Some(_), None) => {
                bad("endpoint", "must be there with a token: the image endpoint of its catalogue")
            }
            (None, Some(_)) => bad(
                "token",
                "must be there with an endpoint; without both, the service's own credentials \
                 and their catalogue count",
            ),
            (None, None) if config.keystone.is_none() => bad(
                "token",
                "must be a Keystone token, unless images.keystone has the service's own \
                 credentials",
            ),
            (None, None) => Ok(()),
        }
    }

    /// What the request brought, or what the service's own credentials give.
    pub(super) fn grant(&self, runtime: &Runtime, config: &config::Images) -> Result<Granted> {
        match (self.token, self.endpoint) {
            (Some(token), Some(endpoint)) => Ok(self.granted(token, endpoint)),
            _ => Granted::own(self.section, runtime, config),
        }
    }

    fn granted(&self, token: &str, endpoint: &str) -> Granted {
        Granted {
            section: self.section,
            endpoint: endpoint.to_owned(),
            token: token.to_owned(),
            service_token: self.service_token.map(str::to_owned),
        }
    }
}

fn own_credentials(config: &config::Images) -> Result<&config::Keystone> {
    config.keystone.as_ref().ok_or_else(|| {
        Fault::new(FaultKind::GlanceForbidden, "images.keystone has no credentials of the service")
    })
}

/// A client that has no token yet.
fn builder(config: &config::Images) -> Result<ClientBuilder> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT)
        .redirect(same_host_only())
        // The endpoint is of this cloud; the environment's proxies are not for it.
        .no_proxy();
    for certificate in authorities(config)? {
        builder = builder.add_root_certificate(certificate);
    }
    Ok(builder)
}

impl Granted {
    /// By the service's own credentials: their token goes to the endpoint of
    /// their catalogue, and never to an address that a request names.
    pub(super) fn own(
        section: &'static str,
        runtime: &Runtime,
        config: &config::Images,
    ) -> Result<Granted> {
        let keystone = own_credentials(config)?;
        let keystone::Grant { token, endpoint } =
            runtime.block_on(keystone::grant(builder(config)?, keystone))?;
        Ok(Granted { section, endpoint, token, service_token: None })
    }

    /// The part of the request that it is for.
    pub(super) fn section(&self) -> &'static str {
        self.section
    }

    /// Where an image's content is: `{endpoint}/v2/images/{id}/file`.
    pub(super) fn file_url(&self, image: Uuid, config: &config::Images) -> Result<Url> {
        let mut url = self.image_url(image, config)?;
        url.set_path(&format!("{}/file", url.path()));
        Ok(url)
    }

    /// Where an image's description is: `{endpoint}/v2/images/{id}`.
    pub(super) fn image_url(&self, image: Uuid, config: &config::Images) -> Result<Url> {
        let bad = |why: &str| Err(Fault::invalid(format!("{}.endpoint", self.section), why));
        let Ok(mut url) = Url::parse(&self.endpoint) else {
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
        let path = format!("{base}/v2/images/{image}");
        url.set_path(&path);
        Ok(url)
    }

    /// A client that shows the token and may be given time limits.
    pub(super) fn client(&self, config: &config::Images) -> Result<ClientBuilder> {
        Ok(builder(config)?.default_headers(self.headers()?))
    }

    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let tokens = [
            ("x-auth-token", "token", Some(self.token.as_str())),
            ("x-service-token", "service_token", self.service_token.as_deref()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let id = Uuid::nil();
        let url = |endpoint: &str, glance_plain_http| {
            let config = config::Images { glance_plain_http, ..Default::default() };
            let granted = Granted {
                section: "source",
                endpoint: endpoint.to_owned(),
                token: "t".to_owned(),
                service_token: None,
            };
            granted.file_url(id, &config).map(|url| url.to_string())
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
    #[test]
    fn without_a_token_the_service_needs_credentials_of_its_own() {
        let own = config::Images { keystone: Some(Default::default()), ..Default::default() };
        let access =
            |endpoint, token| Access { section: "source", endpoint, token, service_token: None };
        let check = |access: Access<'_>, config| {
            access.check(Uuid::nil(), config).err().and_then(|fault| fault.field)
        };
        let none = config::Images::default();
        assert_eq!(check(access(None, None), &none).as_deref(), Some("source.token"));
        assert_eq!(check(access(None, Some("t")), &own).as_deref(), Some("source.endpoint"));
        // Its own token must go nowhere but to its own cloud.
        assert_eq!(check(access(Some("https://h"), None), &own).as_deref(), Some("source.token"));
        assert_eq!(check(access(None, None), &own), None);
        assert_eq!(check(access(Some("https://h"), Some("t")), &none), None);
    }
}
