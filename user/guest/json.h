/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_GUEST_JSON_H
#define FERRY_GUEST_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Members of JSON that came from outside: each getter checks the type and
 * answers with a harmless value when the member is missing or something else.
 * A NULL object is fine everywhere. Results belong to the object.
 */

/** ferry_json_string() - Return: the text, or NULL. */
const char *ferry_json_string(struct json_object *obj, const char *key);

/** ferry_json_bool() - Return: the value, or @otherwise. */
bool ferry_json_bool(struct json_object *obj, const char *key, bool otherwise);

/** ferry_json_uint() - Return: the non-negative integer, or @otherwise. */
uint64_t ferry_json_uint(struct json_object *obj, const char *key, uint64_t otherwise);

/** ferry_json_get() - Return: the member if it is of @type, else NULL. */
struct json_object *ferry_json_get(struct json_object *obj, const char *key, enum json_type type);

/** ferry_json_length() - Return: elements of an array, 0 for anything else. */
size_t ferry_json_length(struct json_object *array);

#endif
