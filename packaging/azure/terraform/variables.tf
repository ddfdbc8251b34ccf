variable "name" {
  description = "Begins the name of every resource."
  type        = string
  default     = "outgate"
}

variable "resource_group_name" {
  description = "The resource group, which exists."
  type        = string
}

variable "location" {
  description = "The region."
  type        = string
}

variable "hub_prefix" {
  description = "The hub network's address range."
  type        = string
  default     = "10.0.0.0/24"
}

variable "gate_subnet_prefix" {
  description = "The gates' subnet, in the hub's range. It has no route table: the gates' own traffic must not come back to them."
  type        = string
  default     = "10.0.0.0/26"
}

variable "frontend_address" {
  description = "The load balancer's address: the spokes' next hop and resolver. In the gates' subnet."
  type        = string
  default     = "10.0.0.4"
}

variable "client_prefixes" {
  description = "The spokes' address ranges. Nobody else is served."
  type        = list(string)
  validation {
    condition     = length(var.client_prefixes) > 0 && !contains(var.client_prefixes, "0.0.0.0/0")
    error_message = "Name the spokes' own ranges."
  }
}

variable "ipv6_next_hop" {
  description = "Where the spokes' IPv6 goes: a gate's address, or null to drop it."
  type        = string
  default     = null
}

variable "instances" {
  description = "Gates."
  type        = number
  default     = 2
}

variable "zones" {
  description = "Availability zones of the region, for the gates and the load balancer's address."
  type        = list(string)
  default     = ["1", "2", "3"]
}

variable "size" {
  description = "The gates' VM size, one with accelerated networking."
  type        = string
  default     = "Standard_D2as_v5"
}

variable "admin_username" {
  description = "The user who may log in, through Bastion or the serial console: no rule lets SSH in."
  type        = string
  default     = "outgate"
}

variable "admin_ssh_key" {
  description = "The public key of that user."
  type        = string
}

variable "package_url" {
  description = "Where the gates fetch the Debian package."
  type        = string
}

variable "package_sha256" {
  description = "The package's digest, in hexadecimal."
  type        = string
  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.package_sha256))
    error_message = "64 hexadecimal digits, as sha256sum prints them."
  }
}

variable "policy" {
  description = "The policy, as YAML. A change replaces the gates one by one; to change it in seconds, write /etc/outgate/policy.d on them."
  type        = string
}

variable "upstreams" {
  description = "The resolvers that the gates ask."
  type        = list(string)
  default     = ["168.63.129.16"]
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
