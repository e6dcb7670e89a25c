//! Where a request can get to from the location that its URI finds: rewrites, internal redirects, subrequests. What
//! cannot be told makes every pass of the server possible.

use std::collections::{BTreeSet, HashSet};

use super::{
    locate::Name,
    model::{Model, Module},
    pcre::Pattern,
    tree::{Kind, NodeId},
};

/// Steps that are followed before everything is thought possible; nginx itself gives up after ten redirects.
const MOST_STEPS: usize = 64;
/// Longest URI that is followed, bytes, twice what nginx reads from a client by default: one that doubles at each step
/// would take all memory long before [`MOST_STEPS`].
const MOST_URI: usize = 16 << 10;

/// Directives that make subrequests of the URI in their first argument.
const SUBREQUESTS: [&str; 5] = ["auth_request", "mirror", "post_action", "add_before_body", "add_after_body"];

/// Directives by which a request may get anywhere, or nowhere.
const SCRIPTS: [&str; 30] = [
    "rewrite_by_lua",
    "rewrite_by_lua_block",
    "rewrite_by_lua_file",
    "server_rewrite_by_lua_block",
    "server_rewrite_by_lua_file",
    "access_by_lua",
    "access_by_lua_block",
    "access_by_lua_file",
    "content_by_lua",
    "content_by_lua_block",
    "content_by_lua_file",
    "js_access",
    "js_content",
    "perl",
    "ssi",
    "random_index",
    // Third parties' modules that make subrequests or lead elsewhere.
    "auth_jwt_key_request",
    "auth_jwt_require",
    "echo_exec",
    "echo_location",
    "echo_location_async",
    "echo_subrequest",
    "echo_subrequest_async",
    "eval",
    "fancyindex_header",
    "fancyindex_footer",
    "nchan_authorize_request",
    "srcache_fetch",
    "srcache_store",
    "zip_subrequest",
];

/// Why a request may be anywhere: a backend's answer can lead it there.
pub const REDIRECT: &str = "X-Accel-Redirect";

/// Behind a module's prefix: its cache can hold an answer with `X-Accel-Redirect`.
pub(super) const CACHE: &str = "cache";
/// Behind a module's prefix: the headers of answers that nginx does not act on.
pub(super) const IGNORED: &str = "ignore_headers";

/// Whether a directive of this name is looked for here.
pub(super) fn is_known(name: &[u8]) -> bool {
    let others = ["error_page", "index", "internal", "merge_slashes", "try_files"];
    let of_module = |module: &Module| {
        name.strip_prefix(module.prefix().as_bytes())
            .is_some_and(|rest| [CACHE, IGNORED].iter().any(|known| known.as_bytes() == rest))
    };
    SUBREQUESTS.iter().chain(&SCRIPTS).chain(&others).any(|known| known.as_bytes() == name)
        || MODULES.iter().any(of_module)
}

/// The modules whose backends' answers can lead elsewhere.
const MODULES: [Module; 5] = [Module::Proxy, Module::Fastcgi, Module::Uwsgi, Module::Scgi, Module::Grpc];

/// What the directives of the rewrite module in one block do to a URI.
#[derive(Debug, Default)]
struct Rewritten {
    /// Whether the request can go on in this block's location.
    stays: bool,
    /// The URIs with which it can go on elsewhere.
    moves: Vec<Vec<u8>>,
    /// The URIs with which it can go on in this block's location.
    inner: Vec<Vec<u8>>,
    /// The URI with which it was answered here, for error pages.
    answered: Option<Vec<u8>>,
    /// Whether it can go on with a URI that is not known.
    unknown: bool,
}

impl Rewritten {
    fn uris(&self) -> impl Iterator<Item = &[u8]> {
        self.moves.iter().chain(&self.answered).map(Vec::as_slice)
    }
}

/// A place that a request can get to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// A URI from the client.
    Request(usize, Vec<u8>),
    /// A URI that nginx leads to, from the server's rewrites on.
    Internal(usize, Vec<u8>),
    /// A URI that a location's rewrite made: the server's rewrites are over.
    Rewritten(usize, Vec<u8>),
    /// A named location, with the URI, which stays.
    Named(usize, Vec<u8>, Vec<u8>),
}

/// Everything that a request can get to.
pub(super) struct Flow<'a> {
    model: &'a Model,
    passes: BTreeSet<usize>,
    reasons: Vec<&'static str>,
    certain: bool,
    /// A backend may have answered.
    answered: bool,
    todo: Vec<Step>,
    seen: HashSet<Step>,
}

impl<'a> Flow<'a> {
    /// `answered`: a backend may have answered the request, or a part of it.
    pub(super) fn new(model: &'a Model, answered: bool) -> Self {
        Self {
            model,
            passes: BTreeSet::new(),
            reasons: Vec::new(),
            certain: true,
            answered,
            todo: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Follows a request to a server, with the URI as nginx can have read it; returns the location that it finds, if
    /// that is certain.
    pub(super) fn request(&mut self, server: usize, uris: &[Option<Vec<u8>>]) -> Option<NodeId> {
        let node = self.model.servers.get(server)?.node;
        let mut found = Vec::new();
        for uri in uris {
            // What nginx refuses reaches no pass; but what was read may not be what it got.
            let Some(uri) = uri else {
                self.anything(server, "uri");
                return None;
            };
            let search = self.model.search(node, uri);
            let certain = search.others.is_empty() && !search.lost && !search.redirect;
            found.push(search.first.filter(|_| certain));
            self.todo.push(Step::Request(server, uri.clone()));
        }
        self.run(server);
        match found.as_slice() {
            [first, rest @ ..] if rest.iter().all(|other| other == first) => *first,
            _ => None,
        }
    }

    /// Follows what the default server of an address does with a request whose headers nginx refuses before it has
    /// come to the host: only its pages for errors.
    pub(super) fn refused_early(&mut self, server: usize, uris: &[Option<Vec<u8>>]) {
        let Some(node) = self.model.servers.get(server).map(|server| server.node) else { return };
        for uri in uris {
            match uri {
                Some(uri) => self.errors(server, node, uri),
                None => self.anything(server, "uri"),
            }
        }
        self.run(server);
    }

    /// Takes every step that is left.
    fn run(&mut self, server: usize) {
        while let Some(step) = self.todo.pop() {
            if self.seen.len() >= MOST_STEPS {
                self.anything(server, "rewrite");
                self.todo.clear();
                break;
            }
            if self.seen.insert(step.clone()) {
                self.step(step);
            }
        }
    }

    /// Notes why the answer is not exact.
    pub(super) fn because(&mut self, reason: &'static str) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// The passes, the reasons, and whether nothing else is possible.
    pub(super) fn end(self) -> (Vec<usize>, Vec<&'static str>, bool) {
        (self.passes.into_iter().collect(), self.reasons, self.certain)
    }

    /// Every pass of the server.
    fn anything(&mut self, server: usize, reason: &'static str) {
        self.because(reason);
        self.certain = false;
        let own = self.model.passes.iter().enumerate().filter(|(_, pass)| pass.server == Some(server));
        self.passes.extend(own.map(|(index, _)| index));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request(server, uri) => self.enter_server(server, &uri, true),
            Step::Internal(server, uri) => self.enter_server(server, &uri, false),
            Step::Rewritten(server, uri) => self.find(server, &uri, false),
            Step::Named(server, name, uri) => {
                let Some(node) = self.model.servers.get(server).map(|server| server.node) else { return };
                let named = self.model.locations(node).into_iter().find(|(_, other)| match other {
                    Name::Named(other) => *other == name,
                    Name::Exact(_) | Name::Prefix(..) | Name::Regex(..) => false,
                });
                if let Some((location, _)) = named {
                    self.enter(server, location, &uri, true);
                }
            }
        }
    }

    fn enter_server(&mut self, server: usize, uri: &[u8], external: bool) {
        let Some(node) = self.model.servers.get(server).map(|server| server.node) else { return };
        let rewritten = self.rewrites(node, uri.to_vec(), true);
        if rewritten.unknown {
            self.anything(server, "rewrite");
        }
        // A header that nginx refuses, or a `return` in an `if`: the server's own pages hold until a location is found.
        for uri in std::iter::once(uri).chain(rewritten.uris()) {
            self.errors(server, node, uri);
        }
        for moved in &rewritten.moves {
            self.because("rewrite");
            // A rewrite makes a request an internal one.
            self.find(server, moved, false);
        }
        if rewritten.stays {
            self.find(server, uri, external);
        }
    }

    /// Enters the location that a URI finds, or those that it may find.
    fn find(&mut self, server: usize, uri: &[u8], external: bool) {
        let Some(node) = self.model.servers.get(server).map(|server| server.node) else { return };
        let search = self.model.search(node, uri);
        if search.lost {
            self.anything(server, "location");
        }
        for location in &search.others {
            self.because("location ~");
            self.enter(server, *location, uri, !external);
        }
        if search.redirect {
            // Even this answer, or the refusal of an internal location, may have a page.
            self.errors(server, search.first.unwrap_or(node), uri);
            return;
        }
        match search.first {
            Some(location) => self.enter(server, location, uri, !external),
            None => self.inside(server, node, uri, false),
        }
    }

    fn enter(&mut self, server: usize, location: NodeId, uri: &[u8], internally: bool) {
        if !internally && self.model.has(location, "internal") {
            // nginx answers with 404, which has a page perhaps.
            self.errors(server, location, uri);
            return;
        }
        let rewritten = self.rewrites(location, uri.to_vec(), false);
        if rewritten.unknown {
            self.anything(server, "rewrite");
        }
        for moved in &rewritten.moves {
            self.because("rewrite");
            // A `return` may have come before the URI was looked up again.
            self.errors(server, location, moved);
            self.todo.push(Step::Rewritten(server, moved.clone()));
        }
        for inner in &rewritten.inner {
            self.inside(server, location, inner, true);
        }
        if rewritten.stays || rewritten.inner.is_empty() {
            let uri = rewritten.answered.as_deref().unwrap_or(uri);
            self.inside(server, location, uri, rewritten.stays);
        }
    }

    /// What a location (or the server, where there is none) does with a request.
    fn inside(&mut self, server: usize, block: NodeId, uri: &[u8], passes: bool) {
        let own = self.model.passes.iter().enumerate().filter(|(_, pass)| pass.location == Some(block));
        let own: Vec<(usize, bool)> =
            own.map(|(index, pass)| (index, self.model.config().parent(pass.node) == Some(block))).collect();
        if own.len() > 1 {
            self.because("if");
        }
        let handled = own.iter().any(|(_, direct)| *direct);
        if passes && !own.is_empty() {
            self.passes.extend(own.iter().map(|(index, _)| *index));
            if own.iter().any(|(index, _)| self.model.may_redirect(*index, self.answered)) {
                self.anything(server, REDIRECT);
            }
        }
        let config = self.model.config();
        let is_part = |id: &NodeId| {
            config.kind(*id) == Kind::Block && matches!(&*config.name(*id), b"if" | b"limit_except")
        };
        let blocks: Vec<NodeId> =
            std::iter::once(block).chain(config.children(block).filter(is_part)).collect();
        for block in &blocks {
            self.errors(server, *block, uri);
        }
        for name in SUBREQUESTS {
            if let Some(node) = self.model.nearest(Some(block), name) {
                for target in self.lines_beside(node, name) {
                    let target = self.model.config().arg(target, 0).unwrap_or_default();
                    self.lead(server, &target, uri, name);
                }
            }
        }
        for script in SCRIPTS {
            let off = |node: NodeId| self.model.config().arg(node, 0).as_deref() == Some("off");
            let mut found = blocks.iter().filter_map(|block| self.model.nearest(Some(*block), script));
            if found.any(|node| !off(node)) {
                self.anything(server, script);
            }
        }
        let tried = self.model.has_own(block, "try_files");
        let mut folder = uri.ends_with(b"/").then(|| uri.to_vec());
        if let Some(node) = tried {
            let words: Vec<String> = (0..).map_while(|index| self.model.config().arg(node, index)).collect();
            if let Some((last, others)) = words.split_last() {
                self.lead(server, last, uri, "try_files");
                if others.iter().any(|word| word.ends_with('/')) && folder.is_none() {
                    folder = Some([uri, b"/"].concat());
                }
            }
        }
        if let Some(folder) = folder.filter(|_| !handled) {
            self.index(server, block, &folder);
        }
    }

    /// A folder leads to its index file, if there is one.
    fn index(&mut self, server: usize, block: NodeId, folder: &[u8]) {
        let set = self.model.nearest(Some(block), "index");
        let lines = set.map_or_else(Vec::new, |node| self.lines_beside(node, "index"));
        let mut names: Vec<String> = lines
            .iter()
            .flat_map(|line| (0..).map_while(|index| self.model.config().arg(*line, index)))
            .collect();
        if names.is_empty() {
            names.push("index.html".to_owned());
        }
        for name in names {
            if name.starts_with('/') {
                self.lead(server, &name, folder, "index");
            } else {
                let path = [folder, name.as_bytes()].concat();
                if name.contains('$') {
                    self.anything(server, "index");
                } else {
                    self.todo.push(Step::Internal(server, path));
                }
            }
        }
    }

    /// The pages for errors: the last argument is where they lead.
    fn errors(&mut self, server: usize, block: NodeId, uri: &[u8]) {
        let Some(node) = self.model.nearest(Some(block), "error_page") else { return };
        for line in self.lines_beside(node, "error_page") {
            if let Some(target) = (0..).map_while(|index| self.model.config().arg(line, index)).last() {
                self.lead(server, &target, uri, "error_page");
            }
        }
    }

    /// Follows a target such as `@name`, `/uri?arguments`, `=404` or a URL.
    fn lead(&mut self, server: usize, target: &str, uri: &[u8], reason: &'static str) {
        let path = target.split('?').next().unwrap_or_default();
        if path.starts_with('=') || path == "off" || path.contains("://") {
            return;
        }
        let known = path.replace("${uri}", "$uri").replace("$document_uri", "$uri");
        let Some(made) = substitute(known.as_bytes(), uri, None) else {
            self.anything(server, reason);
            return;
        };
        self.because(reason);
        self.todo.push(if made.starts_with(b"@") {
            Step::Named(server, made, uri.to_vec())
        } else {
            Step::Internal(server, made)
        });
    }

    /// All directives of a name in the block of one of them.
    fn lines_beside(&self, node: NodeId, name: &str) -> Vec<NodeId> {
        let config = self.model.config();
        let Some(block) = config.parent(node) else { return vec![node] };
        let id = config.find_name(name.as_bytes());
        config.children(block).filter(|other| config.name_id(*other) == id).collect()
    }

    /// Runs the directives of the rewrite module in one block.
    fn rewrites(&self, block: NodeId, uri: Vec<u8>, in_server: bool) -> Rewritten {
        let config = self.model.config();
        let mut result = Rewritten { stays: true, ..Rewritten::default() };
        let mut current = uri;
        let mut changed = false;
        for id in config.children(block) {
            match &*config.name(id) {
                b"rewrite" => match self.rewrite(id, &current) {
                    Rewrite::No => {}
                    Rewrite::Unknown => result.unknown = true,
                    Rewrite::Ends => {
                        result.stays = false;
                        return result;
                    }
                    Rewrite::To(new, Flag::Last) => {
                        result.stays = false;
                        result.moves.push(new);
                        return result;
                    }
                    Rewrite::To(new, Flag::Break) => {
                        result.stays = false;
                        if in_server {
                            result.moves.push(new);
                        } else {
                            result.inner.push(new);
                        }
                        return result;
                    }
                    Rewrite::To(new, Flag::None) => {
                        current = new;
                        changed = true;
                    }
                },
                b"break" => {
                    if changed {
                        result.stays = false;
                        if in_server { result.moves.push(current) } else { result.inner.push(current) }
                    }
                    return result;
                }
                b"return" => {
                    result.stays = false;
                    result.answered = Some(current);
                    return result;
                }
                b"if" if config.kind(id) == Kind::Block => self.perhaps(id, &current, &mut result),
                _ => {}
            }
        }
        if changed {
            result.stays = false;
            result.moves.push(current);
        }
        result
    }

    /// Runs an `if` whose condition is not known.
    fn perhaps(&self, block: NodeId, uri: &[u8], result: &mut Rewritten) {
        let config = self.model.config();
        for id in config.children(block) {
            match &*config.name(id) {
                b"rewrite" => match self.rewrite(id, uri) {
                    Rewrite::No => {}
                    Rewrite::Unknown | Rewrite::To(_, Flag::None) => result.unknown = true,
                    Rewrite::Ends => return,
                    Rewrite::To(new, flag) => {
                        if flag == Flag::Break {
                            result.inner.push(new.clone());
                        }
                        result.moves.push(new);
                        return;
                    }
                },
                b"break" | b"return" => return,
                _ => {}
            }
        }
    }

    fn rewrite(&self, id: NodeId, uri: &[u8]) -> Rewrite {
        let config = self.model.config();
        let mut words = config.args(id);
        let (Some(pattern), Some(replacement)) = (words.next(), words.next()) else { return Rewrite::No };
        let flag = words.next();
        let groups = Pattern::new(&pattern, false).and_then(|regex| regex.captures(uri));
        let url =
            ["http://", "https://", "$scheme"].iter().any(|start| replacement.starts_with(start.as_bytes()));
        let ends = url || matches!(flag.as_deref(), Some(b"redirect" | b"permanent"));
        let flag = match flag.as_deref() {
            Some(b"last") => Flag::Last,
            Some(b"break") => Flag::Break,
            _ => Flag::None,
        };
        match groups {
            Some(None) => Rewrite::No,
            None if ends => Rewrite::No,
            Some(Some(_)) if ends => Rewrite::Ends,
            None => Rewrite::Unknown,
            Some(Some(groups)) => {
                let path = replacement.split(|byte| *byte == b'?').next().unwrap_or_default();
                match substitute(path, uri, Some(&groups)) {
                    Some(new) if !new.is_empty() => Rewrite::To(new, flag),
                    _ => Rewrite::Unknown,
                }
            }
        }
    }
}

/// What one `rewrite` does.
enum Rewrite {
    /// It does not fit.
    No,
    /// It may fit, or leads to a URI that is not known.
    Unknown,
    /// It answers the client.
    Ends,
    /// It leads to a URI.
    To(Vec<u8>, Flag),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    None,
    Last,
    Break,
}

/// Puts `$uri` and the groups of an expression into a text; `None` if it has other variables, or if that is too long to
/// be followed.
fn substitute(text: &[u8], uri: &[u8], groups: Option<&[Vec<u8>]>) -> Option<Vec<u8>> {
    let mut made = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
        if made.len() > MOST_URI {
            return None;
        }
        made.extend_from_slice(rest.get(..at)?);
        let after = rest.get(at + 1..)?;
        if let [digit @ b'1'..=b'9', tail @ ..] = after {
            // A group that took no part in the match is empty.
            let group = groups?.get(usize::from(digit - b'0'));
            made.extend_from_slice(group.map(Vec::as_slice).unwrap_or_default());
            rest = tail;
            continue;
        }
        let tail = after.strip_prefix(b"uri")?;
        if tail.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
            return None;
        }
        made.extend_from_slice(uri);
        rest = tail;
    }
    made.extend_from_slice(rest);
    Some(made).filter(|made| made.len() <= MOST_URI)
}

impl Model {
    /// The first directive of a name in a block or the innermost one around it; for names that the model keeps.
    pub(super) fn nearest(&self, block: Option<NodeId>, name: &str) -> Option<NodeId> {
        let name = self.config.find_name(name.as_bytes())?;
        let mut at = block;
        while let Some(block) = at {
            if let Some(node) = self.settings.get(&(Some(block), name)) {
                return Some(*node);
            }
            at = self.config.parent(block);
        }
        None
    }

    /// The first directive of a name in a block itself.
    fn has_own(&self, block: NodeId, name: &str) -> Option<NodeId> {
        let name = self.config.find_name(name.as_bytes())?;
        self.settings.get(&(Some(block), name)).copied()
    }

    fn has(&self, block: NodeId, name: &str) -> bool {
        self.has_own(block, name).is_some()
    }
}
