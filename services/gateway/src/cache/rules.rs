//! What HTTP lets a shared cache keep, and use while the server can't be asked (RFC 9111). Where servers differ in what they
//! mean, the careful reading counts: an answer that may be for one person is not kept.

use std::time::SystemTime;

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{
        AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_RANGE, COOKIE, DATE, EXPIRES, HeaderName, HeaderValue, PRAGMA,
        RANGE, SET_COOKIE, VARY,
    },
};

/// Fields an answer may depend on.
const VARYING: usize = 16;
/// Answers that may be kept although they say nothing about it (RFC 9110, 15.1), and are no errors of the moment.
const KEPT: [u16; 8] = [200, 203, 204, 300, 301, 308, 404, 410];
/// Those that have to say so.
const KEPT_IF_SAID: [u16; 3] = [302, 307, 405];

/// On which terms an answer is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The request's fields that it depends on.
    pub vary: Vec<(HeaderName, Vec<HeaderValue>)>,
    /// Seconds old it was when it came.
    pub age: u64,
    /// Seconds old it may become; none: what is stale may be used while the server can't be asked.
    pub until: Option<u64>,
}

/// The terms on which the answer to a request is kept; none: it is not.
pub fn keep(
    method: &Method,
    asked: &HeaderMap,
    status: StatusCode,
    answered: &HeaderMap,
    now: SystemTime,
) -> Option<Terms> {
    let (request, response) = (Directives::of(asked)?, Directives::of(answered)?);
    let said =
        response.public || response.max_age.is_some() || response.s_maxage.is_some() || answered.contains_key(EXPIRES);
    let status = status.as_u16();
    let understood = KEPT.contains(&status) || (said && KEPT_IF_SAID.contains(&status));
    let refused = request.no_store || response.no_store || response.private || response.no_cache;
    let personal = (asked.contains_key(AUTHORIZATION)
        && !(response.public || response.s_maxage.is_some() || response.revalidate))
        || (asked.contains_key(COOKIE) && !(response.public || response.s_maxage.is_some()));
    let partial = [RANGE].iter().any(|name| asked.contains_key(name)) || answered.contains_key(CONTENT_RANGE);
    let method = *method == Method::GET || *method == Method::HEAD;
    if !method || !understood || refused || personal || partial || answered.contains_key(SET_COOKIE) {
        return None;
    }
    let vary = varying(answered)?.into_iter().map(|name| (name.clone(), values(asked, &name))).collect();
    let date = time(answered, &DATE);
    let apparent = date.and_then(|date| now.duration_since(date).ok()).map_or(0, |age| age.as_secs());
    let age = number(answered.get(AGE)).unwrap_or(0).max(apparent);
    let expires = || {
        let expires = answered.get(EXPIRES)?;
        // One that can't be read is in the past.
        let at = httpdate::parse_http_date(expires.to_str().unwrap_or_default()).ok();
        Some(at.and_then(|at| at.duration_since(date.unwrap_or(now)).ok()).map_or(0, |fresh| fresh.as_secs()))
    };
    let lifetime = response.s_maxage.or(response.max_age).or_else(expires).unwrap_or(0);
    let until = (response.revalidate || response.s_maxage.is_some()).then_some(lifetime);
    Some(Terms { vary, age, until })
}

impl Terms {
    /// Whether an answer that has become `age` seconds old is one to this request.
    pub fn answers(&self, asked: &HeaderMap, age: u64) -> bool {
        let Some(request) = Directives::of(asked) else { return false };
        let pragma = asked.get(PRAGMA).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no-cache"));
        let same = self.vary.iter().all(|(name, values)| self::values(asked, name) == *values);
        let young = self.until.is_none_or(|until| age <= until) && request.max_age.is_none_or(|most| age <= most);
        same && young && !request.no_cache && !pragma && !asked.contains_key(AUTHORIZATION)
    }
}

/// What `Cache-Control` says that matters here.
#[derive(Debug, Default)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    /// `must-revalidate` or `proxy-revalidate`.
    revalidate: bool,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
}

impl Directives {
    /// None: it can't be read, so that nothing is known to be allowed.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = Self::default();
        for field in headers.get_all(CACHE_CONTROL) {
            for directive in split(field.to_str().ok()?) {
                let (name, value) =
                    directive.split_once('=').map_or((directive, None), |(n, v)| (n.trim_end(), Some(v)));
                // Twice the same: the shorter time counts; one that can't be read is none.
                let shorter = |time: Option<u64>| {
                    let value = value.map(|value| value.trim().trim_matches('"'));
                    let read = value.map_or(0, |digits| seconds(digits).unwrap_or(0));
                    Some(time.map_or(read, |time| time.min(read)))
                };
                match name.to_ascii_lowercase().as_str() {
                    "no-store" => all.no_store = true,
                    "no-cache" => all.no_cache = true,
                    "private" => all.private = true,
                    "public" => all.public = true,
                    "must-revalidate" | "proxy-revalidate" => all.revalidate = true,
                    "max-age" => all.max_age = shorter(all.max_age),
                    "s-maxage" => all.s_maxage = shorter(all.s_maxage),
                    _ => {}
                }
            }
        }
        Some(all)
    }
}

/// The parts between commas that are in no quotes.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(move |c: char| {
        let is_escaped = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !is_escaped => escaped = true,
            '"' if !is_escaped => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// Seconds; more than can be counted is very long.
fn seconds(digits: &str) -> Option<u64> {
    let legal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    legal.then(|| digits.parse().unwrap_or(u64::from(u32::MAX)).min(u64::from(u32::MAX)))
}

fn number(value: Option<&HeaderValue>) -> Option<u64> {
    seconds(value?.to_str().ok()?.trim())
}

fn time(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// The fields an answer depends on; none: on what can't be said.
fn varying(answered: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for field in answered.get_all(VARY) {
        for name in field.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "*" || names.len() == VARYING {
                return None;
            }
            names.push(HeaderName::from_bytes(name.as_bytes()).ok()?);
        }
    }
    Some(names)
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    headers.get_all(name).iter().cloned().collect()
}

#[cfg(test)]
mod tests;
