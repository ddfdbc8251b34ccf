"""Reads what is shipped by readers of others, and fails where one of them does not take it.

    check.py kubernetes FILE...   each object against the schemas of Kubernetes
    check.py terraform FILE...    as HCL
    check.py bicep FILE...        as Bicep
"""
import sys


def kubernetes(path):
    import kubernetes_validate
    import yaml

    for document in yaml.safe_load_all(open(path)):
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # of the Prometheus operator, whose schema is its own
        kubernetes_validate.validate(document, "1.30", strict=True)
        print(f"{document['kind']} {document['metadata']['name']}")


def terraform(path):
    import hcl2

    print(*hcl2.load(open(path)))


def bicep(path):
    import tree_sitter
    import tree_sitter_bicep

    language = tree_sitter.Language(tree_sitter_bicep.language())
    tree = tree_sitter.Parser(language).parse(open(path, "rb").read())
    wrong = [node for node in walk(tree.root_node) if node.type == "ERROR" or node.is_missing]
    if wrong:
        sys.exit(f"{path}: {[(node.start_point, node.text[:80]) for node in wrong]}")
    print(path)


def walk(node):
    yield node
    for child in node.children:
        yield from walk(child)


if __name__ == "__main__":
    for path in sys.argv[2:]:
        {"kubernetes": kubernetes, "terraform": terraform, "bicep": bicep}[sys.argv[1]](path)
