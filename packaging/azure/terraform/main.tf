# The hub of a hub-and-spoke network: gates behind an internal load balancer, to which the spokes route all they send.

locals {
  admin_port = 9180
}

module "cloud_init" {
  source = "./cloud-init"

  client_prefixes = var.client_prefixes
  upstreams       = var.upstreams
  package_url     = var.package_url
  package_sha256  = var.package_sha256
  policy          = var.policy
}

resource "azurerm_virtual_network" "hub" {
  name                = "${var.name}-hub"
  resource_group_name = var.resource_group_name
  location            = var.location
  address_space       = [var.hub_prefix]
  tags                = var.tags
}

resource "azurerm_subnet" "gates" {
  name                            = "gates"
  resource_group_name             = var.resource_group_name
  virtual_network_name            = azurerm_virtual_network.hub.name
  address_prefixes                = [var.gate_subnet_prefix]
  default_outbound_access_enabled = false
}

# --- What reaches a gate

resource "azurerm_network_security_group" "gates" {
  name                = "${var.name}-gates"
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags

  # The probe, before the rule that keeps everybody else from the admin listener.
  security_rule {
    name                       = "probe"
    priority                   = 100
    direction                  = "Inbound"
    access                     = "Allow"
    protocol                   = "Tcp"
    source_address_prefix      = "AzureLoadBalancer"
    source_port_range          = "*"
    destination_address_prefix = "*"
    destination_port_range     = local.admin_port
  }

  security_rule {
    name                       = "no-admin"
    priority                   = 110
    direction                  = "Inbound"
    access                     = "Deny"
    protocol                   = "*"
    source_address_prefix      = "*"
    source_port_range          = "*"
    destination_address_prefix = var.gate_subnet_prefix
    destination_port_range     = local.admin_port
  }

  security_rule {
    name                       = "no-ssh"
    priority                   = 120
    direction                  = "Inbound"
    access                     = "Deny"
    protocol                   = "Tcp"
    source_address_prefixes    = var.client_prefixes
    source_port_range          = "*"
    destination_address_prefix = var.gate_subnet_prefix
    destination_port_range     = "22"
  }

  # To any destination: the gates are the spokes' router.
  security_rule {
    name                       = "spokes"
    priority                   = 200
    direction                  = "Inbound"
    access                     = "Allow"
    protocol                   = "*"
    source_address_prefixes    = var.client_prefixes
    source_port_range          = "*"
    destination_address_prefix = "*"
    destination_port_range     = "*"
  }

  security_rule {
    name                       = "nobody-else"
    priority                   = 4096
    direction                  = "Inbound"
    access                     = "Deny"
    protocol                   = "*"
    source_address_prefix      = "*"
    source_port_range          = "*"
    destination_address_prefix = "*"
    destination_port_range     = "*"
  }
}

resource "azurerm_subnet_network_security_group_association" "gates" {
  subnet_id                 = azurerm_subnet.gates.id
  network_security_group_id = azurerm_network_security_group.gates.id
}

# --- What a gate reaches the internet by

resource "azurerm_public_ip" "outbound" {
  name                = "${var.name}-outbound"
  resource_group_name = var.resource_group_name
  location            = var.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = var.tags
}

resource "azurerm_nat_gateway" "outbound" {
  name                    = "${var.name}-outbound"
  resource_group_name     = var.resource_group_name
  location                = var.location
  sku_name                = "Standard"
  idle_timeout_in_minutes = 10
  tags                    = var.tags
}

resource "azurerm_nat_gateway_public_ip_association" "outbound" {
  nat_gateway_id       = azurerm_nat_gateway.outbound.id
  public_ip_address_id = azurerm_public_ip.outbound.id
}

resource "azurerm_subnet_nat_gateway_association" "gates" {
  subnet_id      = azurerm_subnet.gates.id
  nat_gateway_id = azurerm_nat_gateway.outbound.id
}

# --- The load balancer

resource "azurerm_lb" "gates" {
  name                = "${var.name}-gates"
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = "Standard"
  tags                = var.tags

  frontend_ip_configuration {
    name                          = "gates"
    subnet_id                     = azurerm_subnet.gates.id
    private_ip_address_allocation = "Static"
    private_ip_address            = var.frontend_address
    zones                         = var.zones
  }
}

resource "azurerm_lb_backend_address_pool" "gates" {
  name            = "gates"
  loadbalancer_id = azurerm_lb.gates.id
}

# A gate that drains, has no policy in force or cannot write its records is not ready.
resource "azurerm_lb_probe" "ready" {
  name                = "ready"
  loadbalancer_id     = azurerm_lb.gates.id
  protocol            = "Http"
  port                = local.admin_port
  request_path        = "/readyz"
  interval_in_seconds = 5
  number_of_probes    = 2
}

# HA ports: every flow of TCP and UDP on every port, to one gate by its five-tuple.
resource "azurerm_lb_rule" "ha_ports" {
  name                           = "ha-ports"
  loadbalancer_id                = azurerm_lb.gates.id
  frontend_ip_configuration_name = "gates"
  backend_address_pool_ids       = [azurerm_lb_backend_address_pool.gates.id]
  probe_id                       = azurerm_lb_probe.ready.id
  protocol                       = "All"
  frontend_port                  = 0
  backend_port                   = 0
  floating_ip_enabled            = false
  tcp_reset_enabled              = true
  idle_timeout_in_minutes        = 30
  disable_outbound_snat          = true
}

# --- The gates

resource "azurerm_linux_virtual_machine_scale_set" "gates" {
  name                = "${var.name}-gates"
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = var.size
  instances           = var.instances
  zones               = var.zones
  zone_balance        = length(var.zones) > 1
  overprovision       = false
  admin_username      = var.admin_username
  custom_data         = base64encode(module.cloud_init.user_data)
  upgrade_mode        = "Rolling"
  health_probe_id     = azurerm_lb_probe.ready.id
  secure_boot_enabled = true
  vtpm_enabled        = true
  tags                = var.tags

  admin_ssh_key {
    username   = var.admin_username
    public_key = var.admin_ssh_key
  }

  source_image_reference {
    publisher = "Canonical"
    offer     = "ubuntu-24_04-lts"
    sku       = "server"
    version   = "latest"
  }

  os_disk {
    storage_account_type = "Premium_LRS"
    caching              = "ReadWrite"
  }

  # Without IP forwarding Azure drops what is not for the interface's own address.
  network_interface {
    name                          = "gate"
    primary                       = true
    enable_ip_forwarding          = true
    enable_accelerated_networking = true

    ip_configuration {
      name                                   = "gate"
      primary                                = true
      subnet_id                              = azurerm_subnet.gates.id
      load_balancer_backend_address_pool_ids = [azurerm_lb_backend_address_pool.gates.id]
    }
  }

  rolling_upgrade_policy {
    max_batch_instance_percent              = 50
    max_unhealthy_instance_percent          = 50
    max_unhealthy_upgraded_instance_percent = 50
    pause_time_between_batches              = "PT30S"
  }

  automatic_instance_repair {
    enabled      = true
    grace_period = "PT10M"
  }

  boot_diagnostics {}

  # The first boot fetches the package through the NAT gateway.
  depends_on = [
    azurerm_lb_rule.ha_ports,
    azurerm_subnet_nat_gateway_association.gates,
    azurerm_nat_gateway_public_ip_association.outbound,
    azurerm_subnet_network_security_group_association.gates,
  ]
}

# --- What the spokes' subnets are given

resource "azurerm_route_table" "spokes" {
  name                          = "${var.name}-spokes"
  resource_group_name           = var.resource_group_name
  location                      = var.location
  bgp_route_propagation_enabled = false
  tags                          = var.tags

  route {
    name                   = "internet"
    address_prefix         = "0.0.0.0/0"
    next_hop_type          = "VirtualAppliance"
    next_hop_in_ip_address = var.frontend_address
  }

  route {
    name                   = "internet-ipv6"
    address_prefix         = "::/0"
    next_hop_type          = var.ipv6_next_hop == null ? "None" : "VirtualAppliance"
    next_hop_in_ip_address = var.ipv6_next_hop
  }
}
