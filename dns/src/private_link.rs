//! Azure Private Link: the public zones whose names have private addresses inside a virtual network.
//!
//! Only Azure's own resolver, [`AZURE_DNS`], knows those; it answers inside the virtual network alone. After
//! Microsoft's "Azure Private Endpoint private DNS zone values" and "Use your workspace with a custom DNS
//! server".

use std::net::{IpAddr, Ipv4Addr};

use outgate_rules::{DomainName, NameError};

/// Azure's resolver, the same address in every virtual network.
pub const AZURE_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));

/// Zones that are the same everywhere. A `privatelink.` zone lies below its public zone and goes with it.
const ZONES: &[&str] = &[
    // Azure Machine Learning
    "api.azureml.ms",
    "notebooks.azure.net",
    "instances.azureml.ms",
    "instances.ml.azure.ms",
    "aznbcontent.net",
    "inference.ml.azure.com",
    // Storage
    "blob.core.windows.net",
    "table.core.windows.net",
    "queue.core.windows.net",
    "file.core.windows.net",
    "web.core.windows.net",
    "dfs.core.windows.net",
    // Key Vault, Container Registry
    "vault.azure.net",
    "vaultcore.azure.net",
    "azurecr.io",
    // Monitor
    "monitor.azure.com",
    "oms.opinsights.azure.com",
    "ods.opinsights.azure.com",
    "agentsvc.azure-automation.net",
    // Event Grid, Service Bus, Event Hubs
    "eventgrid.azure.net",
    "servicebus.windows.net",
    // Functions, App Service
    "azurewebsites.net",
    // Databases
    "database.windows.net",
    "documents.azure.com",
    "mongo.cosmos.azure.com",
    "cassandra.cosmos.azure.com",
    "gremlin.cosmos.azure.com",
    "table.cosmos.azure.com",
    "postgres.database.azure.com",
    "mysql.database.azure.com",
    "mariadb.database.azure.com",
    // AI services
    "cognitiveservices.azure.com",
    "openai.azure.com",
    "search.windows.net",
    // Data Factory, Synapse, Purview
    "datafactory.azure.net",
    "adf.azure.com",
    "sql.azuresynapse.net",
    "dev.azuresynapse.net",
    "purview.azure.com",
    // Redis, App Configuration, IoT, SignalR
    "redis.cache.windows.net",
    "azconfig.io",
    "azure-devices.net",
    "service.signalr.net",
    // Batch; its zone was a region's in an older form
    "privatelink.batch.azure.com",
];

/// Zones of one region: AKS and Batch.
const REGIONAL: &[&str] = &["azmk8s.io", "batch.azure.com", "service.batch.azure.com"];

/// The zones to forward to [`AZURE_DNS`]; with a region (`westeurope`), that region's too.
///
/// # Errors
/// When the region is not one label of a name.
pub fn zones(region: Option<&str>) -> Result<Vec<DomainName>, NameError> {
    let regional =
        region.iter().flat_map(|region| REGIONAL.iter().map(move |zone| format!("{region}.{zone}")));
    if region.is_some_and(|region| region.contains('.')) {
        return Err(NameError::Character);
    }
    ZONES.iter().map(|zone| (*zone).to_owned()).chain(regional).map(|zone| DomainName::parse(&zone)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_zone_is_a_name_and_none_is_there_twice() {
        let mut zones = zones(Some("westeurope")).unwrap();
        let number = zones.len();
        zones.sort();
        zones.dedup();
        assert_eq!((zones.len(), number), (ZONES.len() + REGIONAL.len(), zones.len()));
        assert!(zones.contains(&DomainName::parse("westeurope.azmk8s.io").unwrap()));
    }

    #[test]
    fn a_region_is_one_label() {
        for region in ["west.europe", "", "a b", "-x"] {
            assert!(zones(Some(region)).is_err(), "{region:?}");
        }
    }
}
