// Package wire is the JSON that drivers and the engine exchange over JetStream. No I/O; docs/jetstream.md describes it.
package wire

// The streams that a driver knows.
const (
	MessagesStream = "messages"
	LogsStream     = "logs"
)

const defaultNamespace = "default"

// Consumer returns the name of a driver's consumer.
func Consumer(namespace, driver string) string {
	if namespace == defaultNamespace {
		return driver
	}
	return namespace + "_" + driver
}

// Filters returns the subjects that a driver listens to: tickets and, of the definitions that it names, broadcasts.
func Filters(namespace, driver string, definitions []string) []string {
	start := prefix(namespace)
	if len(definitions) == 0 {
		return []string{start + "drivers." + driver + ".resources.*"}
	}
	var subjects []string
	for _, name := range definitions {
		subjects = append(subjects, start+"resources."+name, start+"drivers."+driver+".resources."+name)
	}
	return subjects
}

// ResultSubject returns where results go.
func ResultSubject(namespace string) string { return prefix(namespace) + "pipelines.driver.result" }

// LogSubject returns where the lines of a step go. Older servers name no step.
func LogSubject(namespace, run, step string) string {
	if step == "" {
		return prefix(namespace) + "logs." + run
	}
	return prefix(namespace) + "logs." + run + "." + step
}

// CancelFilter returns where the server tells drivers to stop, for all runs.
func CancelFilter(namespace string) string { return prefix(namespace) + "cancel.*.*" }

// prefix returns what stands before every subject of a namespace.
func prefix(namespace string) string {
	if namespace == defaultNamespace {
		return ""
	}
	return "ns." + namespace + "."
}
