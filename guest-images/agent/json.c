#include "json.h"

#include <limits.h>
#include <string.h>

struct reader {
	struct json_document *document;
	char *at, *end;
	const char *wrong;
};

static int value(struct reader *reader, int depth);

static int fail(struct reader *reader, const char *wrong)
{
	if (!reader->wrong)
		reader->wrong = wrong;
	return -1;
}

static void skip_space(struct reader *reader)
{
	while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at)
		reader->at++;
}

static int peek(const struct reader *reader)
{
	return reader->at < reader->end ? (unsigned char)*reader->at : -1;
}

static int hex4(struct reader *reader)
{
	int number = 0;
	for (int digit = 0; digit < 4; digit++) {
		int letter = peek(reader);
		if (letter >= '0' && letter <= '9')
			letter -= '0';
		else if (letter >= 'a' && letter <= 'f')
			letter -= 'a' - 10;
		else if (letter >= 'A' && letter <= 'F')
			letter -= 'A' - 10;
		else
			return fail(reader, "bad \\u escape");
		number = number << 4 | letter;
		reader->at++;
	}
	return number;
}

static char *put_utf8(char *to, int code)
{
	if (code < 0x80) {
		*to++ = code;
	} else if (code < 0x800) {
		*to++ = 0xc0 | code >> 6;
		*to++ = 0x80 | (code & 0x3f);
	} else if (code < 0x10000) {
		*to++ = 0xe0 | code >> 12;
		*to++ = 0x80 | (code >> 6 & 0x3f);
		*to++ = 0x80 | (code & 0x3f);
	} else {
		*to++ = 0xf0 | code >> 18;
		*to++ = 0x80 | (code >> 12 & 0x3f);
		*to++ = 0x80 | (code >> 6 & 0x3f);
		*to++ = 0x80 | (code & 0x3f);
	}
	return to;
}

/* What a backslash stands for, written at `to`: never longer than the escape was. */
static char *unescape(struct reader *reader, char *to)
{
	static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	int letter = peek(reader), code, low;
	const char *found = letter > 0 ? strchr(letters, letter) : NULL;
	if (letter < 0)
		return NULL;
	reader->at++;
	if (found) {
		*to++ = meant[found - letters];
		return to;
	}
	if (letter != 'u' || (code = hex4(reader)) < 0)
		return NULL;
	if (code >= 0xd800 && code < 0xdc00) {
		if (reader->end - reader->at < 6 || reader->at[0] != '\\' || reader->at[1] != 'u')
			return NULL;
		reader->at += 2;
		low = hex4(reader);
		if (low < 0xdc00 || low > 0xdfff)
			return NULL;
		code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
	} else if (code >= 0xdc00 && code < 0xe000) {
		return NULL;
	}
	return code ? put_utf8(to, code) : NULL;
}

/* A string behind its opening quote; the closing one leaves room for the NUL. */
static int string(struct reader *reader, const char **text, size_t *length)
{
	char *start = reader->at, *to = start;
	for (;;) {
		int letter = peek(reader);
		if (letter < 0)
			return fail(reader, "a string does not end");
		if (letter < 0x20)
			return fail(reader, "a control character in a string");
		reader->at++;
		if (letter == '"')
			break;
		if (letter != '\\')
			*to++ = letter;
		else if (!(to = unescape(reader, to)))
			return fail(reader, "a bad escape in a string");
	}
	*to = 0;
	*text = start;
	*length = to - start;
	return 0;
}

static int number(struct reader *reader, struct json *node)
{
	int negative = peek(reader) == '-', digits = 0, fits = 1;
	unsigned long long sum = 0, most = (unsigned long long)LLONG_MAX + negative;
	reader->at += negative;
	for (int letter; (letter = peek(reader)) >= '0' && letter <= '9'; reader->at++, digits++) {
		if (sum > (most - (letter - '0')) / 10)
			fits = 0;
		else
			sum = sum * 10 + (letter - '0');
	}
	if (!digits)
		return fail(reader, "expected a value");
	while (peek(reader) > 0 && strchr("+-.eE0123456789", peek(reader))) {
		fits = 0; /* a fraction or an exponent, which nobody here asks for */
		reader->at++;
	}
	node->type = fits ? JSON_INTEGER : JSON_NUMBER;
	node->integer = !fits ? 0 : negative ? (long long)(0 - sum) : (long long)sum;
	return 0;
}

static int word(struct reader *reader, struct json *node)
{
	static const struct { const char *text; enum json_type type; } words[] = {
		{ "null", JSON_NULL }, { "false", JSON_FALSE }, { "true", JSON_TRUE },
	};
	for (size_t index = 0; index < sizeof words / sizeof *words; index++) {
		size_t length = strlen(words[index].text);
		if ((size_t)(reader->end - reader->at) >= length && !memcmp(reader->at, words[index].text, length)) {
			node->type = words[index].type;
			reader->at += length;
			return 0;
		}
	}
	return number(reader, node);
}

static int members(struct reader *reader, int parent, int depth)
{
	struct json *nodes = reader->document->nodes;
	int object = nodes[parent].type == JSON_OBJECT, last = 0;
	char closing = object ? '}' : ']';
	skip_space(reader);
	if (peek(reader) == closing) {
		reader->at++;
		return 0;
	}
	for (;;) {
		const char *name = NULL;
		size_t length;
		int child;
		skip_space(reader);
		if (object) {
			if (peek(reader) != '"')
				return fail(reader, "expected a member's name");
			reader->at++;
			if (string(reader, &name, &length))
				return -1;
			skip_space(reader);
			if (peek(reader) != ':')
				return fail(reader, "expected a colon");
			reader->at++;
		}
		if ((child = value(reader, depth + 1)) < 0)
			return -1;
		nodes[child].name = name;
		*(last ? &nodes[last].next : &nodes[parent].first) = child;
		last = child;
		skip_space(reader);
		if (peek(reader) == closing) {
			reader->at++;
			return 0;
		}
		if (peek(reader) != ',')
			return fail(reader, "expected a comma or the end of a list");
		reader->at++;
	}
}

static int value(struct reader *reader, int depth)
{
	struct json *node;
	int index = reader->document->count;
	if (depth > JSON_DEPTH)
		return fail(reader, "nested too deeply");
	if (index == JSON_NODES)
		return fail(reader, "too many values");
	reader->document->count++;
	node = &reader->document->nodes[index];
	*node = (struct json){ .type = JSON_NULL };
	skip_space(reader);
	switch (peek(reader)) {
	case '{':
	case '[':
		node->type = *reader->at == '{' ? JSON_OBJECT : JSON_ARRAY;
		reader->at++;
		return members(reader, index, depth) ? -1 : index;
	case '"':
		node->type = JSON_STRING;
		reader->at++;
		return string(reader, &node->text, &node->length) ? -1 : index;
	default:
		return word(reader, node) ? -1 : index;
	}
}

const char *json_parse(struct json_document *document, char *text, size_t length)
{
	struct reader reader = { document, text, text + length, NULL };
	document->count = 0;
	if (value(&reader, 0) < 0)
		return reader.wrong ? reader.wrong : "no JSON";
	skip_space(&reader);
	return reader.at == reader.end ? NULL : "something follows the value";
}

const struct json *json_first(const struct json_document *document, const struct json *parent)
{
	return parent && parent->first ? &document->nodes[parent->first] : NULL;
}

const struct json *json_next(const struct json_document *document, const struct json *element)
{
	return element && element->next ? &document->nodes[element->next] : NULL;
}

const struct json *json_member(const struct json_document *document, const struct json *object, const char *name)
{
	const struct json *member;
	if (!object || object->type != JSON_OBJECT)
		return NULL;
	for (member = json_first(document, object); member; member = json_next(document, member))
		if (!strcmp(member->name, name))
			return member;
	return NULL;
}
