/* A small JSON reader (RFC 8259) without an allocator: a text becomes nodes of a fixed table. */
#ifndef JSON_H
#define JSON_H

#include <stddef.h>

enum { JSON_NODES = 4096, JSON_DEPTH = 16 };

enum json_type { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INTEGER, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
	enum json_type type;
	const char *name;  /* of an object's member, else NULL */
	const char *text;  /* a string, with its escapes undone and a NUL behind it */
	size_t length;     /* of the string; it has no other NUL */
	long long integer; /* JSON_NUMBER is what does not fit here */
	int first, next;   /* numbers of the first element and of the next one beside this; 0 is none */
};

struct json_document {
	struct json nodes[JSON_NODES]; /* node 0 is the whole */
	int count;
};

/* Reads the `length` bytes at `text` and changes them. Returns NULL, or what is wrong with them. */
const char *json_parse(struct json_document *document, char *text, size_t length);

/* The member called `name` of `object`, or NULL; also where `object` is NULL or something else. */
const struct json *json_member(const struct json_document *document, const struct json *object, const char *name);

/* The element behind `element`, or the first of an array or object; NULL at the end. */
const struct json *json_next(const struct json_document *document, const struct json *element);
const struct json *json_first(const struct json_document *document, const struct json *parent);

#endif
