// Package link is the way to the servers: settings, connections that fail over, and streams that are opened again.
package link

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

const (
	defaultPort      = "7460"
	defaultAddress   = "127.0.0.1:" + defaultPort
	defaultNamespace = "default"
)

// Addresses returns the servers' addresses, each as host:port; none given means CONVEYOR_ADDRESS, else the default.
func Addresses(given []string) ([]string, error) {
	if len(given) == 0 {
		given = []string{os.Getenv("CONVEYOR_ADDRESS")}
		if given[0] == "" {
			given[0] = defaultAddress
		}
	}
	var found []string
	for _, list := range given {
		for part := range strings.SplitSeq(list, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			address, err := parseAddress(part)
			if err != nil {
				return nil, err
			}
			found = append(found, address)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the address is empty: give host:port, e.g. %s", defaultAddress)
	}
	return found, nil
}

// Namespace returns the one that was given, else that of CONVEYOR_NAMESPACE, else "default".
func Namespace(given string) string {
	for _, each := range []string{given, os.Getenv("CONVEYOR_NAMESPACE")} {
		if each != "" {
			return each
		}
	}
	return defaultNamespace
}

// TLS returns what CONVEYOR_TLS and CONVEYOR_TLS_* ask for; nil when they ask for nothing.
func TLS() (*tls.Config, error) {
	ca, cert, key := os.Getenv("CONVEYOR_TLS_CA"), os.Getenv("CONVEYOR_TLS_CERT"), os.Getenv("CONVEYOR_TLS_KEY")
	if ca == "" && cert == "" && key == "" && !flag("CONVEYOR_TLS") {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: os.Getenv("CONVEYOR_TLS_SERVER_NAME")}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("cannot read the TLS file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the TLS file %s has no certificate", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("a TLS client certificate needs its key, and the key its certificate")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("cannot read the TLS client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func parseAddress(text string) (string, error) {
	for _, scheme := range []string{"grpc://", "http://", "https://"} {
		if strings.HasPrefix(text, scheme) {
			return "", fmt.Errorf("the address %q is not a URL but host:port, e.g. %s", text, defaultAddress)
		}
	}
	if isUnix(text) {
		return text, nil
	}
	if strings.Count(text, ":") > 1 && !strings.HasPrefix(text, "[") {
		return "", fmt.Errorf("the address %q is not host:port; an IPv6 host stands in brackets: [::1]:%s", text, defaultPort)
	}
	if !strings.Contains(text, ":") || strings.HasSuffix(text, "]") {
		text += ":" + defaultPort
	}
	host, port, err := net.SplitHostPort(text)
	number, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil || host == "" || number == 0 {
		return "", fmt.Errorf("the address %q is not host:port, e.g. %s", text, defaultAddress)
	}
	return net.JoinHostPort(host, port), nil
}

func isUnix(address string) bool {
	return strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "unix-abstract:")
}

func isLoopback(address string) bool {
	if isUnix(address) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	host = strings.ToLower(host)
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || (ip != nil && ip.IsLoopback())
}

func flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(os.Getenv(name))) {
	case "", "0", "false", "no", "off":
		return false
	}
	return true
}
