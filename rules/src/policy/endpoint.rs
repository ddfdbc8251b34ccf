//! Private endpoints: the names by which a resource is asked for follow from its id.
//!
//! After Microsoft's page on private endpoint DNS: the public names, which Azure's DNS leads to the private
//! address by a CNAME into a `privatelink.` zone.

use crate::port::{Port, PortSet};

use crate::document::{Mistake, quoted};

/// The names and ports of one kind of resource.
struct Service {
    /// `Microsoft.Storage/storageAccounts`
    resource: &'static str,
    /// `subresource_target`, without a `_secondary` at its end.
    subresource: &'static str,
    /// `{name}` is the resource's, `{region}` a parameter.
    names: &'static [&'static str],
    ports: &'static [(u16, u16)],
}

const HTTPS: &[(u16, u16)] = &[(443, 443)];
/// AMQP and HTTPS.
const MESSAGING: &[(u16, u16)] = &[(443, 443), (5671, 5672)];

const fn service(
    resource: &'static str,
    subresource: &'static str,
    names: &'static [&'static str],
    ports: &'static [(u16, u16)],
) -> Service {
    Service { resource, subresource, names, ports }
}

#[rustfmt::skip]
const SERVICES: &[Service] = &[
    service("Microsoft.Storage/storageAccounts", "blob", &["{name}.blob.core.windows.net"], HTTPS),
    service("Microsoft.Storage/storageAccounts", "dfs", &["{name}.dfs.core.windows.net"], HTTPS),
    service("Microsoft.Storage/storageAccounts", "file", &["{name}.file.core.windows.net"], &[(443, 443), (445, 445)]),
    service("Microsoft.Storage/storageAccounts", "queue", &["{name}.queue.core.windows.net"], HTTPS),
    service("Microsoft.Storage/storageAccounts", "table", &["{name}.table.core.windows.net"], HTTPS),
    service("Microsoft.Storage/storageAccounts", "web", &["{name}.*.web.core.windows.net"], HTTPS),
    service("Microsoft.KeyVault/vaults", "vault", &["{name}.vault.azure.net"], HTTPS),
    service("Microsoft.ContainerRegistry/registries", "registry", &["{name}.azurecr.io", "{name}.{region}.data.azurecr.io"], HTTPS),
    service("Microsoft.CognitiveServices/accounts", "account", &["{name}.cognitiveservices.azure.com", "{name}.openai.azure.com"], HTTPS),
    service("Microsoft.Search/searchServices", "searchService", &["{name}.search.windows.net"], HTTPS),
    service("Microsoft.Batch/batchAccounts", "batchAccount", &["{name}.{region}.batch.azure.com"], HTTPS),
    service("Microsoft.Sql/servers", "sqlServer", &["{name}.database.windows.net"], &[(1433, 1433)]),
    service("Microsoft.DocumentDB/databaseAccounts", "Sql", &["{name}.documents.azure.com", "{name}-{region}.documents.azure.com"], HTTPS),
    service("Microsoft.DocumentDB/databaseAccounts", "MongoDB", &["{name}.mongo.cosmos.azure.com", "{name}-{region}.mongo.cosmos.azure.com"], &[(10255, 10255)]),
    service("Microsoft.DocumentDB/databaseAccounts", "Cassandra", &["{name}.cassandra.cosmos.azure.com", "{name}-{region}.cassandra.cosmos.azure.com"], &[(10350, 10350)]),
    service("Microsoft.DocumentDB/databaseAccounts", "Gremlin", &["{name}.gremlin.cosmos.azure.com", "{name}-{region}.gremlin.cosmos.azure.com"], HTTPS),
    service("Microsoft.DocumentDB/databaseAccounts", "Table", &["{name}.table.cosmos.azure.com", "{name}-{region}.table.cosmos.azure.com"], HTTPS),
    service("Microsoft.DBforPostgreSQL/servers", "postgresqlServer", &["{name}.postgres.database.azure.com"], &[(5432, 5432)]),
    service("Microsoft.DBforPostgreSQL/flexibleServers", "postgresqlServer", &["{name}.postgres.database.azure.com"], &[(5432, 5432), (6432, 6432)]),
    service("Microsoft.DBforMySQL/servers", "mysqlServer", &["{name}.mysql.database.azure.com"], &[(3306, 3306)]),
    service("Microsoft.DBforMySQL/flexibleServers", "mysqlServer", &["{name}.mysql.database.azure.com"], &[(3306, 3306)]),
    service("Microsoft.DBforMariaDB/servers", "mariadbServer", &["{name}.mariadb.database.azure.com"], &[(3306, 3306)]),
    service("Microsoft.Cache/Redis", "redisCache", &["{name}.redis.cache.windows.net"], &[(6380, 6380)]),
    service("Microsoft.ServiceBus/namespaces", "namespace", &["{name}.servicebus.windows.net"], MESSAGING),
    service("Microsoft.EventHub/namespaces", "namespace", &["{name}.servicebus.windows.net"], &[(443, 443), (5671, 5672), (9093, 9093)]),
    service("Microsoft.Relay/namespaces", "namespace", &["{name}.servicebus.windows.net"], MESSAGING),
    service("Microsoft.EventGrid/topics", "topic", &["{name}.*.eventgrid.azure.net"], HTTPS),
    service("Microsoft.EventGrid/domains", "domain", &["{name}.*.eventgrid.azure.net"], HTTPS),
    service("Microsoft.Web/sites", "sites", &["{name}.azurewebsites.net", "{name}.scm.azurewebsites.net"], HTTPS),
    service("Microsoft.DataFactory/factories", "dataFactory", &["{name}.{region}.datafactory.azure.net"], HTTPS),
    service("Microsoft.DataFactory/factories", "portal", &["adf.azure.com"], HTTPS),
    service("Microsoft.Synapse/workspaces", "Sql", &["{name}.sql.azuresynapse.net"], &[(443, 443), (1433, 1433)]),
    service("Microsoft.Synapse/workspaces", "SqlOnDemand", &["{name}-ondemand.sql.azuresynapse.net"], &[(443, 443), (1433, 1433)]),
    service("Microsoft.Synapse/workspaces", "Dev", &["{name}.dev.azuresynapse.net"], HTTPS),
    service("Microsoft.Purview/accounts", "account", &["{name}.purview.azure.com"], HTTPS),
    service("Microsoft.AppConfiguration/configurationStores", "configurationStores", &["{name}.azconfig.io"], HTTPS),
    service("Microsoft.Devices/IotHubs", "iotHub", &["{name}.azure-devices.net"], &[(443, 443), (5671, 5671), (8883, 8883)]),
    service("Microsoft.SignalRService/SignalR", "signalr", &["{name}.service.signalr.net"], HTTPS),
];

/// What a resource is asked for by, and where it listens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) names: Vec<String>,
    /// The service's own ports: what the rule opens unless it says otherwise.
    pub(crate) ports: PortSet,
}

/// The names and ports of a resource. Without a region, a label that is nothing but the region is any one label:
/// it stands between the resource's own name and Azure's. `listed` says that the rule gives names itself; then a
/// resource whose names cannot be told is none of its mistakes.
pub(crate) fn endpoint(
    resource_id: &str,
    subresource: Option<&str>,
    mut region: impl FnMut() -> Option<String>,
    listed: bool,
) -> Result<Endpoint, Mistake> {
    let (resource, name) = split_id(resource_id)?;
    let of_resource: Vec<&Service> =
        SERVICES.iter().filter(|service| service.resource.eq_ignore_ascii_case(&resource)).collect();
    if of_resource.is_empty() {
        return if listed {
            Ok(Endpoint { names: Vec::new(), ports: ports(HTTPS) })
        } else {
            Err(no_names(&resource))
        };
    }
    let (target, secondary) = match subresource.map(|target| target.strip_suffix("_secondary").ok_or(target))
    {
        Some(Ok(target)) => (Some(target), "-secondary"),
        Some(Err(target)) => (Some(target), ""),
        None => (None, ""),
    };
    let found = match (target, of_resource.as_slice()) {
        (None, [only]) => Some(*only),
        (None, _) => None,
        (Some(target), all) => {
            all.iter().copied().find(|service| service.subresource.eq_ignore_ascii_case(target))
        }
    };
    let Some(service) = found else {
        if listed {
            return Ok(Endpoint { names: Vec::new(), ports: ports(HTTPS) });
        }
        let known: Vec<&str> = of_resource.iter().map(|service| service.subresource).collect();
        let message = match target {
            Some(target) => format!("{} is not a subresource of {resource}", quoted(target)),
            None => format!("{resource} has several subresources"),
        };
        return Err(Mistake::new(message, format!("subresource_target: {}", known.join(", "))));
    };
    let name = format!("{name}{secondary}");
    let names = service.names.iter().filter_map(|template| {
        let named = template.replace("{name}", &name);
        match template.contains("{region}").then(&mut region) {
            None => Some(named),
            Some(Some(region)) => Some(named.replace("{region}", &region)),
            Some(None) if template.contains(".{region}.") => Some(named.replace("{region}", "*")),
            Some(None) => None,
        }
    });
    Ok(Endpoint { names: names.collect(), ports: ports(service.ports) })
}

fn no_names(resource: &str) -> Mistake {
    let why = if resource.eq_ignore_ascii_case("Microsoft.MachineLearningServices/workspaces") {
        "a workspace's names carry its own id"
    } else {
        "the names of this type of resource are not known"
    };
    Mistake::new(
        format!("the names of {} do not follow from its resource id: {why}", quoted(resource)),
        "list them: fqdns: [...] beside `service_resource_id`",
    )
}

/// `/subscriptions/S/resourceGroups/G/providers/Microsoft.Storage/storageAccounts/mlstore` as type and name.
fn split_id(id: &str) -> Result<(String, &str), Mistake> {
    let parts: Vec<&str> = id.split('/').collect();
    let (resource, name) = match parts.as_slice() {
        ["", subscriptions, _, groups, _, providers, provider, resource, name]
            if subscriptions.eq_ignore_ascii_case("subscriptions")
                && groups.eq_ignore_ascii_case("resourceGroups")
                && providers.eq_ignore_ascii_case("providers") =>
        {
            (format!("{provider}/{resource}"), *name)
        }
        _ => {
            return Err(Mistake::new(
                format!("{} is not a resource id", quoted(id)),
                "/subscriptions/<id>/resourceGroups/<name>/providers/Microsoft.Storage/storageAccounts/<name>",
            ));
        }
    };
    // A name becomes part of a pattern, where a wildcard would open other accounts.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(Mistake::new(
            format!("{} is not the name of a resource", quoted(name)),
            "the last part of the id is letters, digits and hyphens",
        ));
    }
    Ok((resource, name))
}

fn ports(ranges: &[(u16, u16)]) -> PortSet {
    ranges.iter().filter_map(|(start, end)| Some(Port::new(*start)?..=Port::new(*end)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    fn id(resource: &str, name: &str) -> String {
        format!("/subscriptions/s/resourceGroups/g/providers/{resource}/{name}")
    }

    #[test]
    fn names_follow_from_the_resource_id() {
        let region = || Some("westeurope".to_owned());
        for (resource, target, names) in [
            ("Microsoft.Storage/storageAccounts", Some("blob"), &["x.blob.core.windows.net"][..]),
            ("microsoft.storage/storageaccounts", Some("BLOB"), &["x.blob.core.windows.net"]),
            (
                "Microsoft.Storage/storageAccounts",
                Some("blob_secondary"),
                &["x-secondary.blob.core.windows.net"],
            ),
            ("Microsoft.KeyVault/vaults", Some("vault"), &["x.vault.azure.net"]),
            ("Microsoft.KeyVault/vaults", None, &["x.vault.azure.net"]),
            (
                "Microsoft.ContainerRegistry/registries",
                Some("registry"),
                &["x.azurecr.io", "x.westeurope.data.azurecr.io"],
            ),
            (
                "Microsoft.CognitiveServices/accounts",
                Some("account"),
                &["x.cognitiveservices.azure.com", "x.openai.azure.com"],
            ),
        ] {
            let endpoint = endpoint(&id(resource, "x"), target, region, false).unwrap();
            assert_eq!(endpoint.names, names, "{resource}");
        }
    }

    #[test]
    fn without_a_region_its_label_is_any_one_label() {
        let of = |resource| endpoint(&id(resource, "x"), None, || None, false).unwrap().names;
        assert_eq!(of("Microsoft.ContainerRegistry/registries"), ["x.azurecr.io", "x.*.data.azurecr.io"]);
        let cosmos = id("Microsoft.DocumentDB/databaseAccounts", "x");
        let cosmos = endpoint(&cosmos, Some("Sql"), || None, false).unwrap().names;
        assert_eq!(
            cosmos,
            ["x.documents.azure.com"],
            "x-*.documents.azure.com could be somebody else's account"
        );
    }

    #[test]
    fn every_name_is_a_pattern_below_its_own_account() {
        for service in SERVICES {
            for template in service.names {
                let name = template.replace("{name}", "x").replace("{region}", "*");
                assert!(Pattern::parse(&name).is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn what_has_no_names_says_what_to_do() {
        let workspace = id("Microsoft.MachineLearningServices/workspaces", "w");
        let error = endpoint(&workspace, Some("amlworkspace"), || None, false).unwrap_err();
        assert!(error.hint.unwrap().contains("fqdns"));
        assert!(endpoint(&workspace, Some("amlworkspace"), || None, true).unwrap().names.is_empty());
        for (id, target) in [
            ("mlstore", None),
            ("", None),
            ("/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts", None),
            (&id("Microsoft.Storage/storageAccounts", "*"), Some("blob")),
            (&id("Microsoft.Storage/storageAccounts", "a.b"), Some("blob")),
            (&id("Microsoft.Storage/storageAccounts", ""), Some("blob")),
            (&id("Microsoft.Storage/storageAccounts", "x"), Some("blobs")),
            (&id("Microsoft.Storage/storageAccounts", "x"), None),
            (&id("Microsoft.Unknown/things", "x"), None),
        ] {
            assert!(endpoint(id, target, || None, false).is_err(), "{id} {target:?}");
        }
    }
}
