package conveyor

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"
)

const maxDepth = 32

// ValueError says that a value cannot be sent without changing it.
type ValueError struct {
	// Path is where it is, e.g. $.build.ids[2].
	Path string
	// Why says what is wrong.
	Why string
}

// Error returns path and reason.
func (e *ValueError) Error() string { return e.Path + ": " + e.Why }

// Struct turns a value that encoding/json writes as an object into a free-form one, as specs, contexts, params and the
// data of results are.
//
// Numbers are IEEE doubles there: an integer that a double cannot hold is a [ValueError], like more than 32 levels of
// nesting and text that is not Unicode. Send such numbers as strings.
func Struct(value any) (*structpb.Struct, error) {
	if value == nil {
		return &structpb.Struct{}, nil
	}
	body, err := json.Marshal(value)
	if err != nil {
		return nil, &ValueError{"$", err.Error()}
	}
	if err := checkText("$", reflect.ValueOf(value)); err != nil {
		return nil, err
	}
	return ParseStruct(body)
}

// ParseStruct turns the text of a JSON object into a free-form value, by the same rules as [Struct].
func ParseStruct(body []byte) (*structpb.Struct, error) {
	if !utf8.Valid(body) {
		return nil, &ValueError{"$", "the text is not valid Unicode"}
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var object map[string]any
	var kind *json.UnmarshalTypeError
	if err := decoder.Decode(&object); errors.As(err, &kind) {
		return nil, &ValueError{"$", "not an object but a JSON " + kind.Value}
	} else if err != nil {
		return nil, &ValueError{"$", "not JSON: " + err.Error()}
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, &ValueError{"$", "more than one JSON value"}
	}
	return toStruct("$", object, 1)
}

// Decode stores a free-form value into what target points to, as encoding/json would. Whole numbers fit integers.
func Decode(value *structpb.Struct, target any) error {
	body, err := json.Marshal(value.AsMap())
	if err != nil {
		return err
	}
	return json.Unmarshal(body, target)
}

func toStruct(path string, object map[string]any, depth int) (*structpb.Struct, error) {
	if depth > maxDepth {
		return nil, &ValueError{path, fmt.Sprintf("more than %d levels of nesting", maxDepth)}
	}
	fields := make(map[string]*structpb.Value, len(object))
	for key, each := range object {
		value, err := toValue(member(path, key), each, depth)
		if err != nil {
			return nil, err
		}
		fields[key] = value
	}
	return &structpb.Struct{Fields: fields}, nil
}

func toValue(path string, value any, depth int) (*structpb.Value, error) {
	switch value := value.(type) {
	case nil:
		return structpb.NewNullValue(), nil
	case bool:
		return structpb.NewBoolValue(value), nil
	case string:
		return structpb.NewStringValue(value), nil
	case json.Number:
		number, err := exact(path, string(value))
		return structpb.NewNumberValue(number), err
	case map[string]any:
		object, err := toStruct(path, value, depth+1)
		return structpb.NewStructValue(object), err
	case []any:
		list, err := toList(path, value, depth+1)
		return structpb.NewListValue(list), err
	}
	return nil, &ValueError{path, fmt.Sprintf("%T is not a JSON type", value)}
}

func toList(path string, values []any, depth int) (*structpb.ListValue, error) {
	if depth > maxDepth {
		return nil, &ValueError{path, fmt.Sprintf("more than %d levels of nesting", maxDepth)}
	}
	list := &structpb.ListValue{Values: make([]*structpb.Value, len(values))}
	for i, each := range values {
		value, err := toValue(path+"["+strconv.Itoa(i)+"]", each, depth)
		if err != nil {
			return nil, err
		}
		list.Values[i] = value
	}
	return list, nil
}

// exact returns the double that a number's text stands for. An integer must be it, not only near it.
func exact(path, text string) (float64, error) {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(number, 0) {
		return 0, &ValueError{path, "the number " + text + " does not fit a double; send it as a string"}
	}
	if whole, ok := new(big.Int).SetString(text, 10); ok {
		if back, _ := new(big.Float).SetFloat64(number).Int(nil); back.Cmp(whole) != 0 {
			return 0, &ValueError{path, "the integer " + text + " does not fit a double; send it as a string"}
		}
	}
	return number, nil
}

var (
	marshaler     = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// checkText looks for text that is not Unicode, which encoding/json would change silently. It looks where that looks, but
// not at what has a way of its own to be written.
func checkText(path string, value reflect.Value) error {
	if value.IsValid() && (value.Type().Implements(marshaler) || value.Type().Implements(textMarshaler)) {
		return nil
	}
	switch value.Kind() {
	case reflect.String:
		if !utf8.ValidString(value.String()) {
			return &ValueError{path, "the text is not valid Unicode"}
		}
	case reflect.Pointer, reflect.Interface:
		return checkText(path, value.Elem())
	case reflect.Slice, reflect.Array:
		for i := range value.Len() {
			if err := checkText(path+"["+strconv.Itoa(i)+"]", value.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for each := value.MapRange(); each.Next(); {
			key := each.Key().String()
			if !utf8.ValidString(key) {
				return &ValueError{path, "a key is not valid Unicode"}
			}
			if err := checkText(member(path, key), each.Value()); err != nil {
				return err
			}
		}
	case reflect.Struct:
		for field, each := range value.Fields() {
			if !field.IsExported() || field.Tag.Get("json") == "-" {
				continue
			}
			if err := checkText(path+"."+field.Name, each); err != nil {
				return err
			}
		}
	}
	return nil
}

func member(path, key string) string {
	for i, r := range key {
		if r != '_' && (r < 'A' || r > 'z' || (r > 'Z' && r < 'a')) && (i == 0 || r < '0' || r > '9') {
			return path + "[" + strconv.Quote(key) + "]"
		}
	}
	if key == "" {
		return path + `[""]`
	}
	return path + "." + key
}
