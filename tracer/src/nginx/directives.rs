//! The directives whose effective value this program tells: where each may stand, how it is inherited, and its
//! default in every version. Taken from the command tables and the merge functions of nginx 1.6.0 to 1.31.4
//! (src/http/modules/ngx_http_{proxy,fastcgi,uwsgi,scgi,grpc,memcached}_module.c, src/http/ngx_http_core_module.c,
//! src/http/modules/ngx_http_upstream_keepalive_module.c, src/stream/ngx_stream_proxy_module.c).
//!
//! Not here: what nginx takes from the default server of the address because it does not know the host yet
//! (`client_header_timeout`, `client_header_buffer_size`, `merge_slashes`): that is no property of a pass.

use super::{
    model::{Layer, Module},
    version::{Platform, Version},
};

/// How a block gets the value that it does not set itself. Either way the innermost block that sets it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherit {
    /// One value; the directive may stand once in a block.
    Value,
    /// One value that nginx lets stand often in a block: the last one counts.
    Last,
    /// Flags: several lines of one block add up, as if all stood in one.
    Flags,
    /// A list: a block with one line of its own inherits none of the lines further out.
    AllOrNothing,
}

/// What holds where no block sets the directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// A value.
    Text(&'static str),
    /// So many memory pages.
    Pages(u32),
    /// So many buffers of one memory page.
    Buffers(u32),
    /// Twice the larger of `X_buffer_size` and one of `X_buffers`.
    TwiceTheLargest,
    /// Nothing: the feature is not in use.
    Nothing,
}

/// Whose directive it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Each of these modules, behind its own prefix; in `http`, `server` and `location` (in `stream`: `stream` and
    /// `server`).
    Passes(&'static [Module]),
    /// nginx's core in these layers; in the same blocks.
    Core(&'static [Layer]),
    /// The body of an `upstream` in these layers; never inherited.
    Upstream(&'static [Layer]),
}

/// A row of [`DIRECTIVES`].
#[derive(Debug, Clone, Copy)]
pub struct Directive {
    /// The name, behind the prefix where there is one.
    pub name: &'static str,
    /// Whose it is.
    pub owner: Owner,
    /// How it is inherited.
    pub inherit: Inherit,
    /// Whether the text output shows it even where it is not set.
    pub brief: bool,
    /// The defaults, each with the version that brought it; the first one brought the directive.
    pub defaults: &'static [(Version, Fallback)],
}

/// Before every version that is told apart.
const ALWAYS: Version = Version(0, 0, 0);
const HTTP: &[Layer] = &[Layer::Http];
const BOTH: &[Layer] = &[Layer::Http, Layer::Stream];
use Fallback::{Buffers, Nothing, Pages, Text, TwiceTheLargest};
use Inherit::{AllOrNothing, Flags, Last, Value};
use Module::{Fastcgi as F, Grpc as G, Memcached as M, Proxy as P, Scgi as S, Stream as T, Uwsgi as U};

const fn pass(
    name: &'static str,
    modules: &'static [Module],
    brief: bool,
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Passes(modules), inherit: Value, brief, defaults }
}

const fn pass_flags(
    name: &'static str,
    modules: &'static [Module],
    brief: bool,
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Passes(modules), inherit: Flags, brief, defaults }
}

const fn pass_list(
    name: &'static str,
    modules: &'static [Module],
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Passes(modules), inherit: AllOrNothing, brief: false, defaults }
}

const fn core(
    name: &'static str,
    layers: &'static [Layer],
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Core(layers), inherit: Value, brief: false, defaults }
}

const fn core_list(
    name: &'static str,
    layers: &'static [Layer],
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Core(layers), inherit: AllOrNothing, brief: false, defaults }
}

const fn upstream(
    name: &'static str,
    layers: &'static [Layer],
    brief: bool,
    defaults: &'static [(Version, Fallback)],
) -> Directive {
    Directive { name, owner: Owner::Upstream(layers), inherit: Value, brief, defaults }
}

const SSL_PROTOCOLS: &[(Version, Fallback)] = &[
    (ALWAYS, Text("SSLv3 TLSv1 TLSv1.1 TLSv1.2")),
    (Version(1, 9, 1), Text("TLSv1 TLSv1.1 TLSv1.2")),
    (Version(1, 23, 4), Text("TLSv1 TLSv1.1 TLSv1.2 TLSv1.3")),
    (Version(1, 27, 3), Text("TLSv1.2 TLSv1.3")),
];

/// Every directive whose effective value is told.
pub const DIRECTIVES: &[Directive] = &[
    pass("connect_timeout", &[P, F, U, S, G, M, T], true, &[(ALWAYS, Text("60s"))]),
    pass("send_timeout", &[P, F, U, S, G, M], true, &[(ALWAYS, Text("60s"))]),
    pass("read_timeout", &[P, F, U, S, G, M], true, &[(ALWAYS, Text("60s"))]),
    pass("timeout", &[T], true, &[(ALWAYS, Text("10m"))]),
    pass_flags("next_upstream", &[P, F, U, S, G, M], true, &[(ALWAYS, Text("error timeout"))]),
    pass("next_upstream", &[T], true, &[(ALWAYS, Text("on"))]),
    pass("next_upstream_tries", &[P, F, U, S, G, M, T], false, &[(Version(1, 7, 5), Text("0"))]),
    pass("next_upstream_timeout", &[P, F, U, S, G, M, T], false, &[(Version(1, 7, 5), Text("0"))]),
    pass("bind", &[P, F, U, S, G, M, T], false, &[(ALWAYS, Text("off"))]),
    pass("socket_keepalive", &[P, F, U, S, G, M, T], false, &[(Version(1, 15, 6), Text("off"))]),
    pass("buffer_size", &[P, F, U, S, G, M], true, &[(ALWAYS, Pages(1))]),
    pass("buffer_size", &[T], false, &[(Version(1, 9, 4), Text("16k"))]),
    pass("buffers", &[P, F, U, S], false, &[(ALWAYS, Buffers(8))]),
    pass("busy_buffers_size", &[P, F, U, S], false, &[(ALWAYS, TwiceTheLargest)]),
    pass("buffering", &[P, F, U, S], false, &[(ALWAYS, Text("on"))]),
    pass("request_buffering", &[P, F, U, S], false, &[(Version(1, 7, 11), Text("on"))]),
    pass("max_temp_file_size", &[P, F, U, S], false, &[(ALWAYS, Text("1024m"))]),
    pass("ignore_client_abort", &[P, F, U, S], false, &[(ALWAYS, Text("off"))]),
    pass("intercept_errors", &[P, F, U, S, G], false, &[(ALWAYS, Text("off"))]),
    pass("limit_rate", &[P, F, U, S], false, &[(Version(1, 7, 7), Text("0"))]),
    pass("http_version", &[P], true, &[(ALWAYS, Text("1.0")), (Version(1, 29, 7), Text("1.1"))]),
    pass_list(
        "set_header",
        &[P],
        &[
            (ALWAYS, Text("Host $proxy_host, Connection close")),
            (Version(1, 29, 7), Text("Host $proxy_host")),
        ],
    ),
    pass_list("set_header", &[G], &[(ALWAYS, Nothing)]),
    pass_list("param", &[F, U, S], &[(ALWAYS, Nothing)]),
    pass_list("catch_stderr", &[F], &[(ALWAYS, Nothing)]),
    pass("keep_conn", &[F], false, &[(ALWAYS, Text("off"))]),
    pass("protocol", &[T], false, &[(Version(1, 9, 2), Text("off"))]),
    pass("half_close", &[T], false, &[(Version(1, 21, 4), Text("off"))]),
    pass("ssl", &[T], false, &[(ALWAYS, Text("off"))]),
    pass("ssl_verify", &[P, U, G, T], false, &[(Version(1, 7, 0), Text("off"))]),
    pass("ssl_verify_depth", &[P, U, G, T], false, &[(Version(1, 7, 0), Text("1"))]),
    pass("ssl_server_name", &[P, U, G, T], false, &[(Version(1, 7, 0), Text("off"))]),
    pass("ssl_name", &[P, U, G, T], false, &[(Version(1, 7, 0), Text("the host of the pass"))]),
    pass("ssl_session_reuse", &[P, U, G, T], false, &[(ALWAYS, Text("on"))]),
    pass_flags("ssl_protocols", &[P, U, G, T], false, SSL_PROTOCOLS),
    pass("ssl_ciphers", &[P, U, G, T], false, &[(ALWAYS, Text("DEFAULT"))]),
    pass("ssl_certificate", &[P, U, G, T], false, &[(Version(1, 7, 8), Nothing)]),
    pass("ssl_certificate_key", &[P, U, G, T], false, &[(Version(1, 7, 8), Nothing)]),
    pass("ssl_trusted_certificate", &[P, U, G, T], false, &[(Version(1, 7, 0), Nothing)]),
    pass("ssl_crl", &[P, U, G, T], false, &[(Version(1, 7, 0), Nothing)]),
    pass_list("ssl_conf_command", &[P, U, G, T], &[(Version(1, 19, 4), Nothing)]),
    core("resolver", BOTH, &[(ALWAYS, Nothing)]),
    core("resolver_timeout", BOTH, &[(ALWAYS, Text("30s"))]),
    core_list("error_page", HTTP, &[(ALWAYS, Nothing)]),
    core("recursive_error_pages", HTTP, &[(ALWAYS, Text("off"))]),
    core("keepalive_timeout", HTTP, &[(ALWAYS, Text("75s"))]),
    core("keepalive_requests", HTTP, &[(ALWAYS, Text("100")), (Version(1, 19, 10), Text("1000"))]),
    core("client_body_timeout", HTTP, &[(ALWAYS, Text("60s"))]),
    core("client_body_buffer_size", HTTP, &[(ALWAYS, Pages(2))]),
    core("client_max_body_size", HTTP, &[(ALWAYS, Text("1m"))]),
    core("send_timeout", HTTP, &[(ALWAYS, Text("60s"))]),
    core_list("index", HTTP, &[(ALWAYS, Text("index.html"))]),
    Directive { inherit: Last, ..upstream("zone", BOTH, true, &[(Version(1, 9, 0), Nothing)]) },
    upstream("keepalive", HTTP, true, &[(ALWAYS, Text("off")), (Version(1, 29, 7), Text("32 local"))]),
    upstream(
        "keepalive_requests",
        HTTP,
        false,
        &[(Version(1, 15, 3), Text("100")), (Version(1, 19, 10), Text("1000"))],
    ),
    upstream("keepalive_timeout", HTTP, false, &[(Version(1, 15, 3), Text("60s"))]),
    upstream("keepalive_time", HTTP, false, &[(Version(1, 19, 10), Text("1h"))]),
    upstream("resolver", BOTH, false, &[(Version(1, 27, 3), Nothing)]),
    upstream("resolver_timeout", BOTH, false, &[(Version(1, 27, 3), Text("30s"))]),
];

/// The directives by which an `upstream` chooses among its servers; without one it goes round.
pub const METHODS: [&str; 7] = ["least_conn", "ip_hash", "hash", "random", "least_time", "sticky", "fair"];

impl Directive {
    /// The full name in a module.
    pub fn full_name(&self, module: Module) -> String {
        match self.owner {
            Owner::Passes(_) => format!("{}{}", module.prefix(), self.name),
            Owner::Core(_) | Owner::Upstream(_) => self.name.to_owned(),
        }
    }

    /// Whether it is one of a pass of this module: its own, or nginx's core around it.
    pub fn concerns(&self, module: Module) -> bool {
        match self.owner {
            Owner::Passes(modules) => modules.contains(&module),
            Owner::Core(layers) => layers.contains(&module.layer()),
            Owner::Upstream(_) => false,
        }
    }

    /// Whether this build of nginx knows it; true where the version is not known.
    pub fn exists(&self, platform: Platform) -> bool {
        let since = self.defaults.first().map_or(ALWAYS, |(since, _)| *since);
        platform.version.is_none_or(|version| version >= since)
    }

    /// The default; `None` where it depends on the version and that is not known.
    pub fn fallback(&self, platform: Platform) -> Option<Fallback> {
        match (platform.version, self.defaults) {
            (None, [(_, only)]) => Some(*only),
            (None, _) => None,
            (Some(version), all) => {
                all.iter().rev().find(|(since, _)| *since <= version).map(|(_, fallback)| *fallback)
            }
        }
    }

    /// The defaults of all versions in words, for when the version is not known.
    pub fn by_version(&self, platform: Platform) -> String {
        let mut words = String::new();
        for (index, (_, fallback)) in self.defaults.iter().enumerate() {
            if index > 0 {
                words.push_str(", then ");
            }
            words.push_str(&fallback.text(platform).unwrap_or_else(|| "none".to_owned()));
            if let Some((until, _)) = self.defaults.get(index + 1) {
                words.push_str(&format!(" before nginx {until}"));
            }
        }
        words
    }
}

impl Fallback {
    /// The value as it would be written; `None` for [`Fallback::Nothing`], and for what depends on others.
    pub fn text(self, platform: Platform) -> Option<String> {
        match self {
            Text(text) => Some(text.to_owned()),
            Pages(pages) => Some(size(u64::from(pages) * u64::from(platform.page))),
            Buffers(number) => Some(format!("{number} {}", size(u64::from(platform.page)))),
            TwiceTheLargest | Nothing => None,
        }
    }
}

/// A size as nginx writes it.
pub fn size(bytes: u64) -> String {
    if bytes > 0 && bytes.is_multiple_of(1 << 20) {
        format!("{}m", bytes >> 20)
    } else if bytes > 0 && bytes.is_multiple_of(1024) {
        format!("{}k", bytes >> 10)
    } else {
        bytes.to_string()
    }
}

/// A directive of a pass, or of nginx's core around it.
pub fn find(module: Module, name: &str) -> Option<&'static Directive> {
    DIRECTIVES.iter().find(|directive| directive.name == name && directive.concerns(module))
}

/// Whether a directive of this full name may be asked for.
pub(super) fn is_known(name: &[u8]) -> bool {
    let behind_prefix = [P, F, U, S, G, M].iter().find_map(|module| {
        let rest = name.strip_prefix(module.prefix().as_bytes())?;
        Some((*module, rest))
    });
    DIRECTIVES.iter().any(|directive| match (directive.owner, behind_prefix) {
        (Owner::Passes(_), Some((_, rest))) => directive.name.as_bytes() == rest,
        (Owner::Passes(_), None) => false,
        (Owner::Core(_) | Owner::Upstream(_), _) => directive.name.as_bytes() == name,
    })
}
