//! The policy reader against setools: hundreds of questions about a whole distribution's policy.
//!
//! The policy is `$WHY502_SELINUX_POLICY`, or the one that is installed (Debian: selinux-policy-default). `WHY502_SEED=n`
//! asks other questions, `WHY502_LONG=1` many more.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells its seed, in its helpers as well"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tracer::selinux::{Context, Policy, TCP};

/// Source domains per run, and questions about each.
const SOURCES: usize = 12;
const QUESTIONS: usize = 60;

fn installed() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("WHY502_SELINUX_POLICY") {
        return Some(path.into());
    }
    ["default", "targeted"].into_iter().find_map(|name| {
        let folder = fs::read_dir(Path::new("/etc/selinux").join(name).join("policy")).ok()?;
        let mut files: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files.pop()
    })
}

/// The policy and its file; None, with the reason printed, where there is no oracle.
fn subject() -> Option<(Policy, PathBuf)> {
    let Some(path) = installed() else {
        why502_skip::skipped("no SELinux policy is installed");
        return None;
    };
    if Command::new("sesearch").arg("--version").output().is_err() {
        why502_skip::skipped("there is no sesearch");
        return None;
    }
    let policy = Policy::read(&fs::read(&path).unwrap()).unwrap();
    println!("policy {}: version {}", path.display(), policy.version);
    Some((policy, path))
}

fn tool(program: &str, arguments: &[&str], policy: &Path) -> String {
    let output = Command::new(program).arg(policy).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Random(u64);

impl Random {
    /// Begins at the same place unless `WHY502_SEED` says otherwise, and tells where.
    fn new() -> Self {
        let wanted: Option<u64> = std::env::var("WHY502_SEED").ok().and_then(|text| text.parse().ok());
        let seed = wanted.unwrap_or(502);
        println!("seed {seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    fn of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Types by attribute, as seinfo lists them.
fn attributes(path: &Path) -> HashMap<String, HashSet<String>> {
    let mut found: HashMap<String, HashSet<String>> = HashMap::new();
    let mut current = String::new();
    for line in tool("seinfo", &["-a", "-x"], path).lines() {
        if let Some(name) = line.trim().strip_prefix("attribute ") {
            let name = name.trim_end_matches(';').split([',', ' ']).next().unwrap();
            current = name.to_owned();
            found.entry(current.clone()).or_default();
        } else if line.starts_with('\t') && !current.is_empty() {
            found.get_mut(&current).unwrap().insert(line.trim().to_owned());
        }
    }
    assert!(found.len() > 50, "seinfo's output has another form: {} attributes", found.len());
    found
}

fn names(path: &Path, what: &str, word: &str) -> Vec<String> {
    let text = tool("seinfo", &[what], path);
    let mut names: Vec<String> =
        text.lines().skip(2).map(|line| line.trim().trim_start_matches(word).trim().to_owned()).collect();
    names.retain(|name| !name.is_empty());
    names
}

/// A line of sesearch: `allow SOURCE TARGET:CLASS { PERMISSIONS }; [ CONDITION ]:True`.
struct Line {
    target: String,
    class: String,
    permissions: Vec<String>,
    condition: Option<(String, bool)>,
}

fn parse(line: &str) -> Option<Line> {
    let (rule, condition) = line.split_once(';')?;
    let mut words = rule.split_whitespace().skip(2);
    let (target, class) = words.next()?.split_once(':')?;
    let permissions = words.filter(|w| !matches!(*w, "{" | "}")).map(str::to_owned).collect();
    let condition = condition.trim().strip_prefix('[').map(|rest| {
        let (expression, branch) = rest.rsplit_once("]:").unwrap();
        (expression.trim().to_owned(), branch == "True")
    });
    Some(Line { target: target.to_owned(), class: class.to_owned(), permissions, condition })
}

/// Value of a condition in infix form, by recursive descent: `||` and `^` bind weakest, then `&&`, then `==` and `!=`, then
/// `!`. setools puts brackets where it matters.
fn evaluate(expression: &str, value: &dyn Fn(&str) -> bool) -> bool {
    fn weakest(words: &mut &[String], value: &dyn Fn(&str) -> bool) -> bool {
        let mut left = and(words, value);
        while let Some(op) = words.first().filter(|w| matches!(w.as_str(), "||" | "^")).cloned() {
            *words = &words[1..];
            let right = and(words, value);
            left = if op == "||" { left | right } else { left ^ right };
        }
        left
    }
    fn and(words: &mut &[String], value: &dyn Fn(&str) -> bool) -> bool {
        let mut left = unary(words, value);
        while let Some(op) = words.first().filter(|w| matches!(w.as_str(), "&&" | "==" | "!=")).cloned() {
            *words = &words[1..];
            let right = unary(words, value);
            left = match op.as_str() {
                "&&" => left & right,
                "==" => left == right,
                _ => left != right,
            };
        }
        left
    }
    fn unary(words: &mut &[String], value: &dyn Fn(&str) -> bool) -> bool {
        let word = words[0].clone();
        *words = &words[1..];
        match word.as_str() {
            "!" => !unary(words, value),
            "(" => {
                let inner = weakest(words, value);
                assert_eq!(words[0], ")");
                *words = &words[1..];
                inner
            }
            name => value(name),
        }
    }
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace("!=", " NE ").replace('!', " ! ");
    let words: Vec<String> = spaced.replace("NE", "!=").split_whitespace().map(str::to_owned).collect();
    let mut rest = words.as_slice();
    let result = weakest(&mut rest, value);
    assert!(rest.is_empty(), "{expression}");
    result
}

struct Oracle {
    path: PathBuf,
    attributes: HashMap<String, HashSet<String>>,
    booleans: BTreeMap<String, bool>,
}

impl Oracle {
    fn new(path: &Path) -> Self {
        let mut booleans = BTreeMap::new();
        for line in tool("seinfo", &["-b", "-x"], path).lines() {
            let mut words = line.trim().trim_end_matches(';').split_whitespace();
            if let (Some("bool"), Some(name), Some(value)) = (words.next(), words.next(), words.next()) {
                booleans.insert(name.to_owned(), value == "true");
            }
        }
        assert!(!booleans.is_empty(), "seinfo's output has another form");
        Self { path: path.to_owned(), attributes: attributes(path), booleans }
    }

    fn lines(&self, kind: &str, source: &str) -> Vec<Line> {
        tool("sesearch", &[kind, "-s", source], &self.path).lines().filter_map(parse).collect()
    }

    fn means(&self, name: &str, source: &str, target: &str) -> bool {
        name == target
            || (name == "self" && source == target)
            || self.attributes.get(name).is_some_and(|members| members.contains(target))
    }

    /// The permissions of `lines` that hold between two types, with one boolean changed.
    fn allowed(
        &self,
        lines: &[Line],
        source: &str,
        target: &str,
        class: &str,
        flip: Option<&str>,
    ) -> BTreeSet<String> {
        let value = |name: &str| self.booleans[name] != (flip == Some(name));
        let fits = |line: &&Line| {
            line.class == class
                && self.means(&line.target, source, target)
                && line.condition.as_ref().is_none_or(|(e, branch)| evaluate(e, &value) == *branch)
        };
        lines.iter().filter(fits).flat_map(|line| line.permissions.iter().cloned()).collect()
    }

    /// The booleans that stand in conditions between two types.
    fn concerned(&self, lines: &[Line], source: &str, target: &str, class: &str) -> BTreeSet<String> {
        let fits = |line: &&Line| line.class == class && self.means(&line.target, source, target);
        let conditions = lines.iter().filter(fits).filter_map(|line| line.condition.as_ref());
        conditions
            .flat_map(|(e, _)| e.split(|c: char| !c.is_alphanumeric() && !"_-.".contains(c)))
            .filter(|word| self.booleans.contains_key(*word))
            .map(str::to_owned)
            .collect()
    }
}

fn context(policy: &Policy, kind: &str) -> Context {
    policy.parse_context(&format!("system_u:object_r:{kind}:s0")).unwrap()
}

#[test]
fn rules_and_booleans_agree_with_sesearch() {
    let Some((policy, path)) = subject() else { return };
    let oracle = Oracle::new(&path);
    let mut random = Random::new();
    let domains: Vec<String> =
        oracle.attributes["domain"].iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let types = names(&path, "-t", "");
    let classes = names(&path, "-c", "");
    let long = if std::env::var_os("WHY502_LONG").is_some() { 10 } else { 1 };
    // The one that matters is always among them.
    let mut sources = vec!["httpd_t".to_owned()];
    sources.extend((1..SOURCES * long).map(|_| random.of(&domains).clone()));
    let (mut asked, mut allowed, mut conditional, mut silent, mut flips) = (0, 0, 0, 0, 0);
    for source in &sources {
        let lines = oracle.lines("-A", source);
        let quiet = oracle.lines("--dontaudit", source);
        for question in 0..QUESTIONS {
            // Half of the questions begin at a rule, a third of those at a conditional one.
            let (target, class) = if question % 2 == 0 && !lines.is_empty() {
                let under: Vec<&Line> = lines.iter().filter(|line| line.condition.is_some()).collect();
                let line = if question % 6 == 0 && !under.is_empty() {
                    *random.of(&under)
                } else if question % 4 == 0 && !quiet.is_empty() {
                    random.of(&quiet)
                } else {
                    random.of(&lines)
                };
                let target = match oracle.attributes.get(&line.target) {
                    Some(members) if !members.is_empty() => {
                        let members: BTreeSet<&String> = members.iter().collect();
                        (*random.of(&members.into_iter().collect::<Vec<_>>())).clone()
                    }
                    Some(_) => continue,
                    None if line.target == "self" => source.clone(),
                    None => line.target.clone(),
                };
                (target, line.class.clone())
            } else {
                (random.of(&types).clone(), random.of(&classes).clone())
            };
            let (s, t) = (context(&policy, source), context(&policy, &target));
            let number = policy.class(&class).unwrap();
            let bits = |names: &BTreeSet<String>| {
                policy.permissions(number, names.iter().map(String::as_str)).unwrap()
            };
            let access = policy.access(&s, &t, number);
            let expected = oracle.allowed(&lines, source, &target, &class, None);
            assert_eq!(access.allowed, bits(&expected), "{source} {target}:{class} {expected:?}");
            let hidden = oracle.allowed(&quiet, source, &target, &class, None);
            assert_eq!(access.silent, bits(&hidden), "dontaudit {source} {target}:{class} {hidden:?}");
            asked += 1;
            allowed += usize::from(!expected.is_empty());
            silent += usize::from(!hidden.is_empty());
            // Which boolean alone would bring a permission that is missing?
            let concerned = oracle.concerned(&lines, source, &target, &class);
            conditional += usize::from(!concerned.is_empty());
            let after: Vec<(&String, BTreeSet<String>)> = concerned
                .iter()
                .map(|b| (b, oracle.allowed(&lines, source, &target, &class, Some(b))))
                .collect();
            for missing in
                after.iter().flat_map(|(_, all)| all.difference(&expected)).collect::<BTreeSet<_>>()
            {
                let wanted: BTreeSet<&str> =
                    after.iter().filter(|(_, all)| all.contains(missing)).map(|(b, _)| b.as_str()).collect();
                let bit = bits(&[missing.clone()].into());
                if access.constrained & bit != 0 {
                    continue;
                }
                let remedies = policy.remedies(&s, &t, number, bit);
                let found: BTreeSet<&str> = remedies.iter().map(|r| r.boolean.as_str()).collect();
                assert_eq!(found, wanted, "{source} {target}:{class} {missing}");
                assert!(remedies.iter().all(|r| r.value != oracle.booleans[&r.boolean] && r.own > 0));
                flips += 1;
            }
        }
    }
    println!(
        "{asked} questions: {allowed} allowed, {conditional} conditional, {silent} silent, {flips} by booleans"
    );
    assert!(asked >= 500 && allowed > 100 && conditional > 50 && silent > 20 && flips > 20);
}

#[test]
fn ports_agree_with_seinfo() {
    let Some((policy, path)) = subject() else { return };
    // `portcon tcp 80-89 user:role:type:range`
    let text = tool("seinfo", &["--portcon"], &path);
    let lines: Vec<(u32, u16, u16, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.trim().strip_prefix("portcon ")?.split_whitespace();
            let protocol = match words.next()? {
                "tcp" => TCP,
                "udp" => 17,
                _ => return None,
            };
            let (low, high) = words.next().map(|range| range.split_once('-').unwrap_or((range, range)))?;
            Some((protocol, low.parse().ok()?, high.parse().ok()?, words.next()?))
        })
        .collect();
    assert!(lines.len() > 200, "seinfo's output has another form");
    let initial = tool("seinfo", &["--initialsid", "port", "-x"], &path);
    let other = initial.lines().find_map(|line| line.trim().strip_prefix("sid port ")).unwrap();
    for protocol in [TCP, 17] {
        for port in 0..=u16::MAX {
            let narrowest = lines
                .iter()
                .filter(|(p, low, high, _)| *p == protocol && (*low..=*high).contains(&port))
                .min_by_key(|(_, low, high, _)| high - low);
            let expected = narrowest.map_or(other, |(.., context)| context);
            let found = policy.show(policy.port_context(protocol, port).unwrap()).unwrap();
            assert!(expected.starts_with(&format!("{found}:")), "{protocol} {port}: {found}, {expected}");
        }
    }
}
