-- A registry as version 0002 left it. Made by that version; never to be changed.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE events (
	id INTEGER NOT NULL, 
	sprite_id VARCHAR NOT NULL, 
	time FLOAT NOT NULL, 
	kind VARCHAR NOT NULL, 
	cause VARCHAR NOT NULL, 
	detail JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "events" VALUES(1,'sprite-1',1.7780512941234560012e+09,'created','created with token t1','{}');
INSERT INTO "events" VALUES(2,'sprite-2',1.77805129612345600128e+09,'created','created with token t1','{}');
INSERT INTO "events" VALUES(3,'sprite-2',1.77805129712345600127e+09,'warm','a test','{}');
INSERT INTO "events" VALUES(4,'sprite-3',1.7780512991234560013e+09,'created','created with token t1','{}');
INSERT INTO "events" VALUES(5,'sprite-3',1.77805130012345600134e+09,'cold','a test','{}');
INSERT INTO "events" VALUES(6,'sprite-5',1.77805130312345600123e+09,'created','created with token t1','{}');
INSERT INTO "events" VALUES(7,'sprite-5',1.77805130412345600127e+09,'deleting','a test','{}');
INSERT INTO "events" VALUES(8,'sprite-1',1.77805130412345600127e+09,'degraded','the agent does not answer','{"seconds": 5}');
INSERT INTO "events" VALUES(9,'sprite-6',1.77805130412345600127e+09,'deleted','destroyed with token t1','{}');
CREATE TABLE log_ins (
	hash VARCHAR NOT NULL, 
	sprite_id VARCHAR NOT NULL, 
	token_id VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT NOT NULL, 
	PRIMARY KEY (hash), 
	FOREIGN KEY(token_id) REFERENCES tokens (id)
);
INSERT INTO "log_ins" VALUES('9b1b0a5d0f7c0f3c3ac1d6a1c9c5e3f5f1d5b0a4e7d2c8b6a3f4e5d6c7b8a9f0','sprite-1','t1',1778051310.25,1778656110.25);
CREATE TABLE organizations (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "organizations" VALUES('o1','acme',1.77805128912345600123e+09);
INSERT INTO "organizations" VALUES('o2','rival',1.77805129112345600131e+09);
CREATE TABLE sprites (
	id VARCHAR NOT NULL, 
	org_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	volume_id VARCHAR NOT NULL, 
	image_digest VARCHAR NOT NULL, 
	environment JSON NOT NULL, 
	labels JSON NOT NULL, 
	config JSON NOT NULL, 
	url_settings JSON NOT NULL, 
	privileges JSON NOT NULL, 
	created_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	last_running_at FLOAT, 
	last_warming_at FLOAT, 
	PRIMARY KEY (id), 
	UNIQUE (org_id, name), 
	FOREIGN KEY(org_id) REFERENCES organizations (id), 
	UNIQUE (volume_id)
);
INSERT INTO "sprites" VALUES('sprite-1','o1','running','running','volume-1','blake3-77','{"A": "\u00fcn\u00efcode\n"}','["a", "b"]','{"ram_mb": 512}','{"auth": "sprite", "private_access": null}','{"profile": "minimal"}',1.77805129312345600129e+09,1.77805130412345600127e+09,1.7780512941234560012e+09,NULL);
INSERT INTO "sprites" VALUES('sprite-2','o1','warm','warm','volume-2','blake3-77','{}','[]','{}','{"auth": "sprite", "private_access": null}','{}',1.77805129512345600124e+09,1.77805129712345600127e+09,1.77805129612345600128e+09,1.77805129712345600127e+09);
INSERT INTO "sprites" VALUES('sprite-3','o1','cold','cold','volume-3','blake3-77','{}','[]','{}','{"auth": "sprite", "private_access": null}','{}',1.77805129812345600126e+09,1.77805130012345600134e+09,1.7780512991234560013e+09,NULL);
INSERT INTO "sprites" VALUES('sprite-4','o2','creating','creating','volume-4','blake3-77','{}','[]','{}','{"auth": "sprite", "private_access": null}','{}',1.77805130112345600125e+09,1.77805130112345600125e+09,NULL,NULL);
INSERT INTO "sprites" VALUES('sprite-5','o2','deleting','deleting','volume-5','blake3-77','{}','[]','{}','{"auth": "sprite", "private_access": null}','{}',1.77805130212345600124e+09,1.77805130412345600127e+09,1.77805130312345600123e+09,NULL);
CREATE TABLE tokens (
	id VARCHAR NOT NULL, 
	org_id VARCHAR NOT NULL, 
	hash VARCHAR NOT NULL, 
	description VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	revoked_at FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(org_id) REFERENCES organizations (id)
);
INSERT INTO "tokens" VALUES('t1','o1','9223fe884170f41d549f69ef1d62b135be878ffe60bd2381c8672629938a27f1','imported',1.77805128912345600123e+09,NULL);
INSERT INTO "tokens" VALUES('t2','o1','e5083cb50d6e311d0404184f1f50530ddb79b52df5eacb5ad268147a48136b64','imported',1.77805129012345600127e+09,1.7780512921234560013e+09);
INSERT INTO "tokens" VALUES('t3','o2','5e97a18b6523c0a9e9acd220f4496108e49ae35e2b5e1dbd3ffa2b81ad139f91','imported',1.77805129112345600131e+09,NULL);
CREATE INDEX events_of_sprite ON events (sprite_id, id);
CREATE INDEX log_ins_of_token ON log_ins (token_id, created_at);
COMMIT;
