output "route_table_id" {
  description = "For each of the spokes' subnets."
  value       = azurerm_route_table.spokes.id
}

output "dns_servers" {
  description = "For the spokes' networks."
  value       = [var.frontend_address]
}

output "hub_network_id" {
  description = "For the peerings, which must allow forwarded traffic in both directions."
  value       = azurerm_virtual_network.hub.id
}

output "outbound_address" {
  description = "What origins see."
  value       = azurerm_public_ip.outbound.ip_address
}
