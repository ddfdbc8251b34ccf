//! Places on the internet where anybody can keep data: what a rule that opens one of them lets out.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::name::DomainName;
use crate::pattern::Pattern;

/// What a pattern opens of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// A host that all accounts share, or the names of many accounts: strangers' accounts are among them.
    Any,
    /// One account, by its own name.
    Account,
}

/// Hosts that take data for every account alike.
const HOSTS: [&str; 46] = [
    "api.github.com",
    "gist.github.com",
    "github.com",
    "uploads.github.com",
    "gitlab.com",
    "bitbucket.org",
    "api.bitbucket.org",
    "codeberg.org",
    "huggingface.co",
    "hf.co",
    "api.wandb.ai",
    "upload.pypi.org",
    "test.pypi.org",
    "registry.npmjs.org",
    "crates.io",
    "ghcr.io",
    "docker.io",
    "registry-1.docker.io",
    "quay.io",
    "graph.microsoft.com",
    "dc.services.visualstudio.com",
    "storage.googleapis.com",
    "www.googleapis.com",
    "drive.google.com",
    "docs.google.com",
    "content.dropboxapi.com",
    "api.dropboxapi.com",
    "dropbox.com",
    "www.dropbox.com",
    "pastebin.com",
    "paste.ee",
    "dpaste.org",
    "hastebin.com",
    "transfer.sh",
    "file.io",
    "0x0.st",
    "wetransfer.com",
    "mega.nz",
    "webhook.site",
    "discord.com",
    "hooks.slack.com",
    "slack.com",
    "api.telegram.org",
    "api.notion.com",
    "api.openai.com",
    "s3.amazonaws.com",
];

/// Suffixes below which every account has its own name.
const ACCOUNTS: [&str; 30] = [
    "blob.core.windows.net",
    "file.core.windows.net",
    "queue.core.windows.net",
    "table.core.windows.net",
    "dfs.core.windows.net",
    "web.core.windows.net",
    "blob.core.usgovcloudapi.net",
    "blob.core.chinacloudapi.cn",
    "vault.azure.net",
    "azurecr.io",
    "azurewebsites.net",
    "azurefd.net",
    "azureedge.net",
    "servicebus.windows.net",
    "documents.azure.com",
    "cloudapp.azure.com",
    "kusto.windows.net",
    "s3.amazonaws.com",
    "execute-api.amazonaws.com",
    "cloudfront.net",
    "storage.googleapis.com",
    "r2.cloudflarestorage.com",
    "workers.dev",
    "pages.dev",
    "digitaloceanspaces.com",
    "backblazeb2.com",
    "ngrok.io",
    "ngrok.app",
    "trycloudflare.com",
    "sharepoint.com",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Host,
    Accounts,
    /// A host of its own and the suffix of its accounts.
    Both,
}

static STORES: LazyLock<HashMap<&str, Store>> = LazyLock::new(|| {
    let mut stores: HashMap<&str, Store> = HOSTS.iter().map(|host| (*host, Store::Host)).collect();
    for suffix in ACCOUNTS {
        stores.entry(suffix).and_modify(|store| *store = Store::Both).or_insert(Store::Accounts);
    }
    stores
});

/// What a pattern opens that can be written to, as far as is known.
pub(crate) fn opened_by(pattern: &Pattern) -> Option<Opened> {
    match pattern {
        Pattern::Exact(name) => of_name(name),
        Pattern::Below(parent) => below(parent),
        Pattern::InLabel(inner) => below(inner.suffix()),
    }
}

fn of_name(name: &DomainName) -> Option<Opened> {
    match STORES.get(name.as_str()) {
        Some(Store::Host | Store::Both) => return Some(Opened::Any),
        Some(Store::Accounts) | None => {}
    }
    let above = |ancestor: &str| matches!(STORES.get(ancestor), Some(Store::Accounts | Store::Both));
    (name.and_ancestors().skip(1).any(above) || is_s3(name)).then_some(Opened::Account)
}

/// `*.parent` opens what lies below it: accounts, or a whole store further down.
fn below(parent: &DomainName) -> Option<Opened> {
    let accounts = |name: &str| matches!(STORES.get(name), Some(Store::Accounts | Store::Both));
    if accounts(parent.as_str()) || is_s3_suffix(parent.as_str()) {
        return Some(Opened::Any);
    }
    if parent.and_ancestors().any(accounts) {
        return Some(Opened::Account);
    }
    let suffix = format!(".{parent}");
    STORES.keys().any(|store| store.ends_with(&suffix)).then_some(Opened::Any)
}

/// A bucket's own name: `bucket.s3.eu-west-1.amazonaws.com`.
fn is_s3(name: &DomainName) -> bool {
    name.and_ancestors().any(is_s3_suffix)
}

fn is_s3_suffix(name: &str) -> bool {
    let region = name.strip_prefix("s3.").or_else(|| name.strip_prefix("s3-"));
    region.is_some_and(|rest| rest.ends_with("amazonaws.com") && rest.matches('.').count() <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_recognised_by_host_account_and_wildcard() {
        for (pattern, opened) in [
            ("github.com", Some(Opened::Any)),
            ("*.github.com", Some(Opened::Any)),
            ("huggingface.co", Some(Opened::Any)),
            ("*.blob.core.windows.net", Some(Opened::Any)),
            ("ml*.blob.core.windows.net", Some(Opened::Any)),
            ("*.windows.net", Some(Opened::Any)),
            ("mlstore.blob.core.windows.net", Some(Opened::Account)),
            ("bucket.s3.eu-west-1.amazonaws.com", Some(Opened::Account)),
            ("*.s3.eu-west-1.amazonaws.com", Some(Opened::Any)),
            ("s3.amazonaws.com", Some(Opened::Any)),
            ("bucket.s3.amazonaws.com", Some(Opened::Account)),
            ("pypi.org", None),
            ("*.pythonhosted.org", None),
            ("notgithub.com", None),
        ] {
            assert_eq!(opened_by(&Pattern::parse(pattern).unwrap()), opened, "{pattern}");
        }
    }
}
