# packaging/cloud-init/hub.yaml with its words filled in.

variable "client_prefixes" {
  type = list(string)
}

variable "upstreams" {
  type = list(string)
}

variable "package_url" {
  type = string
}

variable "package_sha256" {
  type = string
}

variable "policy" {
  type = string
}

locals {
  # The comment at the top names the words.
  template = replace(file("${path.module}/../../../cloud-init/hub.yaml"), "/^#cloud-config\\n(#[^\\n]*\\n)*/", "")
  values = {
    "@PACKAGE_URL@"    = var.package_url
    "@PACKAGE_SHA256@" = var.package_sha256
    "@CLIENTS@"        = join(", ", [for prefix in var.client_prefixes : jsonencode(prefix)])
    "@UPSTREAMS@"      = join(", ", [for upstream in var.upstreams : jsonencode(upstream)])
    "@POLICY_BASE64@"  = base64encode(var.policy)
  }
  words = regexall("@[A-Z0-9_]+@", local.template)
  # The text between the words. No value is searched for words again.
  between = split("@\u0000@", replace(local.template, "/@[A-Z0-9_]+@/", "@\u0000@"))
  filled  = join("", [for at, text in local.between : "${text}${at < length(local.words) ? local.values[local.words[at]] : ""}"])
}

output "user_data" {
  value = "#cloud-config\n${local.filled}"
}
